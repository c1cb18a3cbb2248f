"""The network that a run begins with: initialized from the seed, or with the weights of a model or checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpt2.data.dataset import Dataset
from gpt2.errors import Log, UserError
from gpt2.formats.open import build, check_shapes, open_model
from gpt2.formats.run_folder import read_description
from gpt2.formats.safetensors_file import read_tensors
from gpt2.formats.source import Source, checked_config
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import BPETokenizer, Tokenizer, from_json, has_ids_of
from gpt2.training.budget import require_memory
from gpt2.training.config import TrainConfig

MODEL_SETTINGS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias", "gelu")
"""Settings that a model brings with it when it is not built from scratch."""


def make_model(
    given: TrainConfig, config: TrainConfig, dataset: Dataset, restored: Path | None, log: Log, own: GPT | None = None
) -> tuple[GPT, Source | None]:
    """Return the network on the CPU, and the opened file that its weights are from, if they are from one.

    given: the settings before defaults were filled in, which may contradict the weights. config: the same settings
    with defaults. restored: the checkpoint that is resumed. own: the caller's model, which is returned once it is
    checked. Raises UserError.
    """
    asked = {name: None if (value := getattr(given, name)) == "auto" else value for name in MODEL_SETTINGS}
    runtime: dict[str, Any] = {"dropout": config.dropout, "flash": config.flash, "pad_vocab": config.pad_vocab}
    if own is not None:
        return _checked_model(own, config, asked, dataset, restored), None
    if restored is not None:
        return _empty_model(config, asked, dataset, restored, runtime), None
    if config.init_from in ("scratch", "auto"):
        return _initialized_model(config, dataset, runtime), None
    return _pretrained_model(config, asked, dataset, runtime, log)


def _checked_model(
    own: GPT, config: TrainConfig, asked: dict[str, Any], dataset: Dataset, restored: Path | None
) -> GPT:
    """Return the caller's model. Raises UserError where it does not fit the settings, the data or the checkpoint."""
    if config.init_from not in ("scratch", "resume", "auto"):
        raise UserError(
            f"init_from={config.init_from} and a given model contradict each other; leave out one of them"
        )
    for method in ("forward", "head"):
        if getattr(type(own), method) is not getattr(GPT, method):
            raise UserError(
                f"the given model has its own {method}, but the loss is computed from `hidden` and the token "
                "embedding; change `hidden` or the blocks instead"
            )
    dataset.require_vocabulary(own.config.vocab_size, "the given model")
    wanted = asked | {"block_size": config.block_size, "dropout": config.dropout or None}
    wanted["bias"] = False if config.bias is False else None  # True is the default, and so may not be asked for
    for name, value in vars(own.config).items():
        if wanted.get(name) not in (None, value):
            raise UserError(
                f"the given model has {name}={value}, not {wanted[name]}; build it with "
                f"GPTConfig({name}={wanted[name]!r}), or train with {name}={value!r}"
            )
    if restored is not None:
        description, owner = read_description(restored), f"the run in {config.out_dir}"
        dataset.require_tokenizer(from_json(description["tokenizer"]), owner, config.out_dir)
        wanted = {name: getattr(own.config, name) for name in MODEL_SETTINGS}
        _require_shape(wanted, _shape_of(description, restored), owner)
    return own


def _empty_model(
    config: TrainConfig, asked: dict[str, Any], dataset: Dataset, restored: Path, runtime: dict[str, Any]
) -> GPT:
    """Return a model of a checkpoint's shape, whose weights are loaded later."""
    description, owner = read_description(restored), f"the run in {config.out_dir}"
    if description.get("own_layers"):
        raise UserError(f"{owner} has layers of its own; resume it with gpt2.train(config, model=…)")
    dataset.require_tokenizer(from_json(description["tokenizer"]), owner, config.out_dir)
    shape = _shape_of(description, restored)
    _require_shape(asked, shape, owner)
    described = GPTConfig(**shape, **runtime)
    tensors, _ = read_tensors(restored / "model.safetensors")
    check_shapes(Source(described, tensors, lambda: None, str(restored)))  # before memory is taken for the model
    return GPT(described)


def _shape_of(description: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return the MODEL_SETTINGS in the `state.json` of a checkpoint. Raises UserError where they are invalid."""
    config = checked_config(description["model"], checkpoint)
    return {name: getattr(config, name) for name in MODEL_SETTINGS}


def _initialized_model(config: TrainConfig, dataset: Dataset, runtime: dict[str, Any]) -> GPT:
    """Return a model of the settings' shape, initialized from the seed."""
    vocab_size = config.vocab_size or dataset.tokenizer.vocab_size
    if vocab_size < dataset.tokenizer.vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is too small: {dataset.path} uses {dataset.tokenizer.vocab_size} token ids; "
            "leave --vocab_size out"
        )
    shape = {name: getattr(config, name) for name in MODEL_SETTINGS} | {"vocab_size": vocab_size}
    model_config = GPTConfig(**shape, **runtime)
    require_memory(config, model_config)
    torch.manual_seed(config.seed)
    return GPT(model_config)


def _pretrained_model(
    config: TrainConfig, asked: dict[str, Any], dataset: Dataset, runtime: dict[str, Any], log: Log
) -> tuple[GPT, Source]:
    """Return the model that init_from names, cropped to block_size, and its opened file."""
    source = open_model(config.init_from)
    known, special = source.known_tokenizer, dataset.tokenizer.special
    new = [text for text, i in special.ids.items() if known is not None and i >= known.vocab_size]
    adds_tokens = known is not None and bool(new) and has_ids_of(dataset.tokenizer, known)
    if not adds_tokens:
        if known:
            dataset.require_tokenizer(known, source.origin, config.init_from)
        dataset.require_vocabulary(source.config.vocab_size, source.origin)
    fixed = ("vocab_size", "n_layer", "n_head", "n_embd")
    _require_shape(asked, {name: getattr(source.config, name) for name in fixed}, source.origin)
    for line in source.notes:
        log(line)
    if asked["gelu"] not in (None, source.config.gelu):
        log(f"computing the {asked['gelu']} GELU, where {source.origin} has the {source.config.gelu} one")
        runtime = runtime | {"gelu": asked["gelu"]}
    model = build(source, **runtime)
    if adds_tokens:
        _add_tokens(model, dataset.tokenizer.vocab_size - len(new), len(new))
        log(f"adding embeddings for {', '.join(new)}, which {source.origin} lacks: each begins as the others' mean")
    if config.block_size != (positions := model.config.block_size):
        model.crop_block_size(config.block_size)
        log(f"keeping the first block_size={config.block_size} of the model's {positions} positions")
    return model, source


def _add_tokens(model: GPT, known: int, new: int) -> None:
    """Give the ids after the first `known` ones to `new` tokens. Their embeddings are the mean of the known ones.

    So a new token's logit is the mean of theirs, and its probability at most 1 / known (Hewitt 2021, "Initializing
    New Word Embeddings for Pretrained Language Models"). Further ids, which only fill up the vocabulary, stay.
    """
    embedding = model.transformer.wte
    rows = embedding.weight.detach()
    mean = rows[:known].mean(dim=0, keepdim=True)
    embedding.weight = nn.Parameter(torch.cat([rows[:known], mean.expand(new, -1), rows[known + new :]]))
    embedding.num_embeddings = len(embedding.weight)
    model.config = replace(model.config, vocab_size=len(embedding.weight))


def run_tokenizer(dataset: Dataset, restored: Path | None, source: Source | None) -> Tokenizer:
    """Return the tokenizer of the resumed checkpoint, or of the model that a run starts from, or of the dataset.

    A model's tokenizer can have more special tokens than the dataset's, which its exports then keep. Where the
    dataset's has more, the model gets them. The chat template by which the dataset was written, and where an answer
    ends by it, replace the model's.
    """
    if restored is not None:
        return from_json(read_description(restored)["tokenizer"])
    known, chat = source.known_tokenizer if source else None, dataset.tokenizer.special
    if known is None or not has_ids_of(known, dataset.tokenizer):
        return dataset.tokenizer
    if chat.chat_template in (None, known.special.chat_template) or not isinstance(known, BPETokenizer):
        return known
    ends = tuple(dict.fromkeys((*known.special.further_ends, *chat.further_ends)))
    special = replace(known.special, chat_template=chat.chat_template, further_ends=ends)
    return BPETokenizer(known.tokens, known.pattern, special=special)


def optimizer_state(source: Source | None, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Return the optimizer state that came with a model, by the names of `named_state`.

    Raises UserError where the model has none, or another optimizer's, or that of fewer tokens.
    """
    if source is None or source.progress.optimizer is None:
        raise UserError(f"init_from={config.init_from} has no optimizer state; leave --resume_optimizer out")
    tensors = source.progress.optimizer()
    if (rows := tensors.get("transformer.wte.weight/exp_avg")) is not None and len(rows) < (config.vocab_size or 0):
        raise UserError(
            f"the optimizer state of init_from={config.init_from} lacks the new tokens; leave --resume_optimizer out"
        )
    if any(name.endswith("/momentum") for name in tensors) != (config.optimizer == "muon"):
        raise UserError(
            f"optimizer={config.optimizer} cannot continue with the state of another optimizer, which init_from="
            f"{config.init_from} has; leave --resume_optimizer out"
        )
    for key in ("exp_avg", "exp_avg_sq"):
        positions = f"transformer.wpe.weight/{key}"
        tensors[positions] = tensors[positions][: config.block_size].clone()  # the model was cropped to these
    return tensors


def _require_shape(asked: dict[str, Any], shape: dict[str, Any], owner: str) -> None:
    """Raise UserError where the user asked for a shape that the weights of `owner` do not have."""
    for name, value in shape.items():
        if asked.get(name) not in (None, value):
            raise UserError(
                f"{owner} has {name}={value}, not {asked[name]}, and the weights decide the shape of the model; "
                f"leave --{name} out"
            )
