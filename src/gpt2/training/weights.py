"""The network that a run begins with: initialised, or with the weights of a model or checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2.data.dataset import Dataset
from gpt2.errors import UserError
from gpt2.formats.open import build, open_model
from gpt2.formats.run_folder import read_description
from gpt2.formats.source import Source
from gpt2.model import GPT, GPTConfig
from gpt2.training.config import TrainConfig

# Settings that a model brings with it when it is not built from scratch.
SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias", "gelu")

Note = Callable[[str], None]


def make_model(
    config: TrainConfig, dataset: Dataset, restored: Path | None, asked: dict[str, Any], note: Note
) -> tuple[GPT, Source | None]:
    """The network on the CPU: initialised from the seed, or with the weights of a model or checkpoint.

    `asked` is the shape as the user gave it, before defaults were filled in. The model's source comes with it
    where there is one.
    """
    runtime: dict[str, Any] = {"dropout": config.dropout, "flash": config.flash, "pad_vocab": config.pad_vocab}
    tokenizer = dataset.tokenizer
    if restored is not None:
        description = read_description(restored)
        dataset.require_tokenizer(description["tokenizer"], f"the run in {config.out_dir}")
        shape = {name: description["model"][name] for name in SHAPE}
        _refuse_other_shape(asked, shape, f"the run in {config.out_dir}")
        return GPT(GPTConfig(**shape, **runtime)), None
    if config.init_from in ("scratch", "auto"):
        vocab_size = config.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"vocab_size={vocab_size} is too small: {dataset.path} uses {tokenizer.vocab_size} token ids; "
                "leave --vocab_size out"
            )
        assert config.n_layer and config.n_head and config.n_embd, "the configuration is resolved"
        torch.manual_seed(config.seed)
        shape = GPTConfig(
            block_size=config.block_size,
            vocab_size=vocab_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            bias=config.bias,
            gelu=config.gelu,
            **runtime,
        )
        return GPT(shape), None
    source = open_model(config.init_from)
    if source.known_tokenizer:
        dataset.require_tokenizer(source.known_tokenizer.to_json(), source.origin)
    dataset.require_vocabulary(source.config.vocab_size, source.origin)
    fixed = ("vocab_size", "n_layer", "n_head", "n_embd")
    _refuse_other_shape(asked, {name: getattr(source.config, name) for name in fixed}, source.origin)
    for line in source.notes:
        note(line)
    if asked["gelu"] not in (None, source.config.gelu):
        note(f"computing the {asked['gelu']} GELU, where {source.origin} has the {source.config.gelu} one")
        runtime["gelu"] = asked["gelu"]
    model = build(source, **runtime)
    if config.block_size != model.config.block_size:
        model.crop_block_size(config.block_size)
    return model, source


def moments(source: Source | None, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The optimizer's state that came with the model. Raises UserError where there is none, or another's."""
    if source is None or source.progress.optimizer is None:
        raise UserError(f"init_from={config.init_from} has no optimizer state; leave --resume_optimizer out")
    tensors = source.progress.optimizer()
    if any(name.endswith("/momentum") for name in tensors) != (config.optimizer == "muon"):
        raise UserError(
            f"optimizer={config.optimizer} cannot go on with the state of another one, which init_from="
            f"{config.init_from} has; leave --resume_optimizer out"
        )
    for key in ("exp_avg", "exp_avg_sq"):
        positions = f"transformer.wpe.weight/{key}"
        tensors[positions] = tensors[positions][: config.block_size].clone()  # as many as the model has kept
    return tensors


def _refuse_other_shape(asked: dict[str, Any], shape: dict[str, Any], whose: str) -> None:
    """Raise UserError where a shape was asked for that the weights do not have."""
    for name, value in shape.items():
        if asked[name] not in (None, value):
            raise UserError(f"{whose} has {name}={value}, not {asked[name]}; leave --{name} out")
