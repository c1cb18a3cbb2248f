"""nanoGPT's `ckpt.pt`, in both directions, and build-nanogpt's `model_*.pt`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.accounting import parameter_shapes
from gpt2.data.nanogpt_meta import meta_bytes
from gpt2.errors import UserError
from gpt2.formats import torch_file
from gpt2.formats.source import Extras, Note, Progress, Source
from gpt2.formats.state_dict import described_config, guess_config, our_names, sizes
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import CharTokenizer


def open_file(path: Path) -> Source:
    """A checkpoint of nanoGPT or build-nanogpt, or a bare state dict. Raises UserError."""
    values = torch_file.load(path)
    if isinstance(values, dict) and "model_args" in values:
        return _nanogpt(values, path)
    if isinstance(values, dict) and isinstance(values.get("config"), torch_file.PickledConfig):
        return _build_nanogpt(values, path)
    tensors = our_names(torch_file.stored(values, path), path)
    config, assumed = guess_config(tensors, path)
    return Source(config, tensors, find_tokenizer(path, config.vocab_size), str(path), (assumed,))


def _nanogpt(values: dict[str, Any], path: Path) -> Source:
    args, settings = values["model_args"], values.get("config")
    if not isinstance(args, dict):
        raise UserError(f"{path} has model_args that are no dictionary; it is damaged")
    settings = settings if isinstance(settings, dict) else {}
    gelu = settings.get("gelu")  # nanoGPT has no such setting; our export records it
    assumed = () if gelu else (f"{path}: taken to compute the erf GELU, as nanoGPT does since June 2023",)
    described = {"bias": args.get("bias", True), "gelu": gelu or "erf", "dropout": args.get("dropout", 0.0)}
    config = described_config({**sizes(args), **described}, path)
    step, optimizer, best = values.get("iter_num", 0), values.get("optimizer"), values.get("best_val_loss")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    return Source(
        config=config,
        tensors=our_names(torch_file.stored(values.get("model"), path), path),
        find_tokenizer=find_tokenizer(path, config.vocab_size, dataset=settings.get("dataset")),
        origin=f"{path} (nanoGPT, iteration {step})",
        notes=assumed,
        progress=Progress(
            step=_count(step),
            settings=settings,
            optimizer=(lambda: _named_optimizer(state, config, path)) if isinstance(state, dict) and state else None,
            best_val_loss=float(best) if isinstance(best, Tensor) and best.numel() == 1 else None,
        ),
    )


def _build_nanogpt(values: dict[str, Any], path: Path) -> Source:
    config = described_config(sizes(vars(values["config"])), path)
    step = values.get("step", 0)
    return Source(
        config=config,
        tensors=our_names(torch_file.stored(values.get("model"), path), path),
        find_tokenizer=find_tokenizer(path, config.vocab_size),
        origin=f"{path} (build-nanogpt, step {step})",
        progress=Progress(step=_count(step)),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def optimizer_order(config: GPTConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of nanoGPT's optimizer: the matrices, which decay, then the vectors."""
    named = list(parameter_shapes(config))
    return [p for p in named if len(p[1]) >= 2] + [p for p in named if len(p[1]) < 2]


def _named_optimizer(state: dict[Any, Any], config: GPTConfig, path: Path) -> dict[str, Tensor]:
    """AdamW's state by name instead of by number. Raises UserError where it is not this model's."""
    result: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(optimizer_order(config)):
        entry = state.get(number)
        for key, wanted in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape)):
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, Tensor) or not torch_file.is_whole(value) or tuple(value.shape) != wanted:
                raise UserError(f"{path} has an optimizer state that is not its model's: {key} of {name}")
            result[f"{name}/{key}"] = value.clone()  # nanoGPT may write over the file at any time
    return result


def write(model: GPT, extras: Extras, folder: Path) -> None:
    """Fill `folder` with a `ckpt.pt` that nanoGPT's sample.py and train.py accept.

    The optimizer's state goes with it where there is one. A character tokenizer is written as the `meta.pkl` that
    nanoGPT looks for in its own data folder.
    """
    config, progress = model.config, extras.progress
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    dataset = Path(str(progress.settings.get("dataset", ""))).name or "exported"  # it looks in data/NAME
    best = 1e9 if progress.best_val_loss is None else progress.best_val_loss
    torch_file.save(
        {
            "model": {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]},
            "optimizer": _numbered_optimizer(config, progress, extras.note),
            "model_args": {**sizes(asdict(config)), "bias": config.bias, "dropout": config.dropout},
            "iter_num": progress.step,
            "best_val_loss": torch.tensor(best),
            "config": {**progress.settings, "dataset": dataset, "gelu": config.gelu},
        },
        folder / "ckpt.pt",
    )
    if isinstance(extras.tokenizer, CharTokenizer):
        (folder / "meta.pkl").write_bytes(meta_bytes(extras.tokenizer))
        extras.note(f"nanoGPT looks for the characters in its data/{dataset}/meta.pkl: copy meta.pkl there")
    elif extras.tokenizer and extras.tokenizer.kind != "gpt2":
        extras.note(f"nanoGPT has no {extras.tokenizer.kind} tokenizer: it can train this model, not sample from it")


def _numbered_optimizer(config: GPTConfig, progress: Progress, note: Note) -> dict[str, Any]:
    """AdamW's state dict as nanoGPT's optimizer loads it; empty of moments where none are known."""
    named = progress.moments(note)
    order = optimizer_order(config)
    matrices = sum(len(shape) >= 2 for _, shape in order)
    setting = {"learning_rate": 6e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1} | progress.settings
    settings = {"lr": setting["learning_rate"], "betas": (setting["beta1"], setting["beta2"]), "eps": 1e-8}
    decays = (range(matrices), setting["weight_decay"]), (range(matrices, len(order)), 0.0)
    groups = [
        {**settings, "weight_decay": decay, "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
         "differentiable": False, "fused": None, "decoupled_weight_decay": True, "params": list(numbers)}
        for numbers, decay in decays
    ]  # fmt: skip
    keys = ("step", "exp_avg", "exp_avg_sq")
    state = {i: {key: named[f"{name}/{key}"] for key in keys} for i, (name, _) in enumerate(order)} if named else {}
    return {"state": state, "param_groups": groups}
