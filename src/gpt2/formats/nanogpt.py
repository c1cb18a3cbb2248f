"""nanoGPT's `ckpt.pt`, read and written; `model_*.pt` of build-nanogpt and checkpoints of other trainers, read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.accounting import parameter_shapes
from gpt2.errors import Log, UserError
from gpt2.formats import torch_file
from gpt2.formats.pickled_values import Foreign, attributes, number
from gpt2.formats.source import Extras, Progress, Source, checked_config, infer_config, to_our_names
from gpt2.formats.tokenizer_files import find_tokenizer
from gpt2.formats.tokenizer_writer import meta_bytes
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import CharTokenizer

# nanoGPT's parameters and these fields have the same names as ours. In addition, its state dict holds lm_head.weight.
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
"""Fields of GPTConfig in nanoGPT's `model_args` and in build-nanogpt's configuration."""
WEIGHTS = ("model", "state_dict", "model_state_dict", "module")
"""Keys under which trainers save the weights: nanoGPT, Lightning, PyTorch's tutorials, DeepSpeed."""
SETTINGS = ("config", "hyper_parameters", "model_config", "hparams", "args")
"""Keys under which trainers save settings, in which the sizes of the model are looked for."""
DEFAULTS = {"bias": True, "dropout": 0.0}
"""Further fields of `model_args`, and their values where older checkpoints omit them."""
GELU = "erf"
"""nanoGPT's GELU since June 2023. It has no setting for it; our exports record one in `config`."""
HYPERPARAMETERS = {"learning_rate": 6e-4, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}
"""nanoGPT's defaults for the settings that its optimizer's state dict repeats."""


def open_file(path: Path) -> Source:
    """Open a checkpoint of nanoGPT, build-nanogpt or another trainer, or a bare state dict. Raises UserError."""
    values, notes = torch_file.load(path)
    weights = _weights(values)
    if isinstance(values, dict) and "model_args" in values:
        return _nanogpt(values, weights, path, notes)
    tensors, changes = to_our_names(torch_file.state_dict(weights, path), path)
    notes = (*notes, *changes)
    if (described := _description(values)) is None:
        config, assumed = infer_config(tensors, path)
        return Source(config, tensors, find_tokenizer(path, config.vocab_size), str(path), (*notes, assumed))
    bias = "transformer.ln_f.bias" in tensors
    config = checked_config({**_sizes(described), "bias": bias}, path)
    step = _count(values.get("step", values.get("global_step")))
    return Source(
        config=config,
        tensors=tensors,
        find_tokenizer=find_tokenizer(path, config.vocab_size),
        origin=f"{path} (step {step})",
        notes=(*notes, f"{path} does not record its GELU: assuming tanh, as build-nanogpt computes"),
        progress=Progress(step=step),
    )


def _weights(values: Any) -> Any:
    """Return the state dict in what a trainer has saved: under one of its keys, or the object itself."""
    if isinstance(values, dict):
        return next((values[key] for key in WEIGHTS if isinstance(values.get(key), dict | Foreign)), values)
    return values


def _description(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the sizes of the model that a trainer has saved, in a dictionary or object of settings; None without."""
    for key in SETTINGS:
        settings = attributes(values.get(key))
        for found in (settings, *map(attributes, settings.values())):
            if all(name in found for name in SIZES):
                return found
    return None


def _nanogpt(values: dict[str, Any], weights: Any, path: Path, notes: tuple[str, ...]) -> Source:
    args, settings = attributes(values["model_args"]), attributes(values.get("config"))
    if not args:
        raise UserError(f"{path} has model_args that are no dictionary; it is damaged")
    gelu = settings.get("gelu")
    if not gelu:
        notes = (*notes, f"{path}: assuming the {GELU} GELU, which nanoGPT computes since June 2023")
    further = {name: args.get(name, default) for name, default in DEFAULTS.items()}
    config = checked_config({**_sizes(args), **further, "gelu": gelu or GELU}, path)
    tensors, changes = to_our_names(torch_file.state_dict(weights, path), path)
    step, optimizer = _count(values.get("iter_num")), values.get("optimizer")
    state = optimizer.get("state") if isinstance(optimizer, dict) else None
    return Source(
        config=config,
        tensors=tensors,
        find_tokenizer=find_tokenizer(path, config.vocab_size, dataset=settings.get("dataset")),
        origin=f"{path} (nanoGPT, iteration {step})",
        notes=(*notes, *changes),
        progress=Progress(
            step=step,
            settings=settings,
            optimizer=(lambda: _named_optimizer(state, config, path)) if isinstance(state, dict) and state else None,
            best_val_loss=number(values.get("best_val_loss")),
        ),
    )


def _sizes(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values.get(name) for name in SIZES}


def _count(value: object) -> int:
    """Return a number of steps, which may be stored as an array or tensor; 0 for anything else."""
    steps = number(value)
    return int(steps) if steps is not None and 0 < steps < 1 << 53 else 0


def optimizer_order(config: GPTConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes in the order of nanoGPT's optimizer: the matrices, which decay, then the vectors."""
    named = list(parameter_shapes(config))
    return [p for p in named if len(p[1]) >= 2] + [p for p in named if len(p[1]) < 2]


def _named_optimizer(state: dict[Any, Any], config: GPTConfig, path: Path) -> dict[str, Tensor]:
    """Return AdamW's state by name instead of by number. Raises UserError where it does not fit the model."""
    result: dict[str, Tensor] = {}
    for position, (name, shape) in enumerate(optimizer_order(config)):
        entry = state.get(position)
        for key, wanted in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape)):
            value = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(value, Tensor) or not torch_file.is_dense(value) or tuple(value.shape) != wanted:
                raise UserError(f"{path} has an optimizer state that does not fit its model: {key} of {name}")
            result[f"{name}/{key}"] = value.clone()  # nanoGPT may overwrite the file at any time
    return result


def write(model: GPT, extras: Extras, folder: Path) -> None:
    """Fill `folder` with a `ckpt.pt` that nanoGPT's sample.py and train.py accept.

    It includes the optimizer's state if that is known. A character tokenizer is written as the `meta.pkl` for which
    nanoGPT looks in its own data folder.
    """
    config, progress = model.config, extras.progress
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    dataset = Path(str(progress.settings.get("dataset", ""))).name or "exported"  # it looks in data/NAME
    best = 1e9 if progress.best_val_loss is None else progress.best_val_loss
    torch_file.save(
        {
            "model": {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]},
            "optimizer": _numbered_optimizer(config, progress, extras.note),
            "model_args": {**_sizes(asdict(config)), "bias": config.bias, "dropout": config.dropout},
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
        extras.note(
            f"nanoGPT has no {extras.tokenizer.kind} tokenizer: it can train this model, not sample from it; its "
            "files record neither the tokens nor which are special"
        )
    elif extras.tokenizer and extras.tokenizer.special.pad is not None:
        extras.note("nanoGPT's files record no padding token, and none of its texts needs one")


def _numbered_optimizer(config: GPTConfig, progress: Progress, note: Log) -> dict[str, Any]:
    """Return AdamW's state dict as nanoGPT's optimizer loads it; its state is empty where none is known.

    It is also empty for a run that trained its matrices with Muon, whose state is not AdamW's.
    """
    named = progress.optimizer_state(note)
    order = optimizer_order(config)
    keys = ("step", "exp_avg", "exp_avg_sq")
    if named and any(f"{name}/{key}" not in named for name, _ in order for key in keys):
        note("nanoGPT trains with AdamW, whose state is not known for all parameters: it starts with an empty state")
        named = {}
    matrices = sum(len(shape) >= 2 for _, shape in order)
    known = HYPERPARAMETERS | progress.settings
    settings = {"lr": known["learning_rate"], "betas": (known["beta1"], known["beta2"]), "eps": 1e-8}
    decays = (range(matrices), known["weight_decay"]), (range(matrices, len(order)), 0.0)
    groups = [
        {**settings, "weight_decay": decay, "amsgrad": False, "maximize": False, "foreach": None, "capturable": False,
         "differentiable": False, "fused": None, "decoupled_weight_decay": True, "params": list(numbers)}
        for numbers, decay in decays
    ]  # fmt: skip
    state = {i: {key: named[f"{name}/{key}"] for key in keys} for i, (name, _) in enumerate(order)} if named else {}
    return {"state": state, "param_groups": groups}
