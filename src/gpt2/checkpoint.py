"""Checkpoints: folders that are whole or do not exist.

`model.safetensors`, `optimizer.safetensors`, `state.json` and, written last, `manifest.json` with the
SHA-256 of each. There is no random state to store: batches and dropout are functions of (seed, step).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gpt2.errors import UserError
from gpt2.files import manifest_problem, publish, write_manifest
from gpt2.formats.native import folder_of, read_description, saved_steps
from gpt2.model import GPT
from gpt2.optim.adamw import load_named_state, named_state
from gpt2.tokenizers import Tokenizer

FORMAT = "gpt2 checkpoint 1"


@dataclass
class TrainState:
    """What a run knows besides its weights. `step` counts the optimizer updates made."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Time spent training, over all resumes."""
    best_val_loss: float | None = None
    best_step: int | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    """The float16 gradient scaler's state; empty for other formats."""


def save(
    out_dir: Path,
    state: TrainState,
    model: GPT,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    train_config: dict[str, Any],
) -> Path:
    """Publish the checkpoint of `state.step` and return its folder."""
    folder = folder_of(out_dir, state.step)
    with publish(folder) as temporary:
        temporary.mkdir()
        save_file(
            {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()},
            temporary / "model.safetensors",
        )
        tensors = {name: value.detach().cpu().contiguous() for name, value in named_state(optimizer).items()}
        save_file(tensors, temporary / "optimizer.safetensors")
        description = {
            "format": FORMAT,
            **asdict(state),
            "model": asdict(model.config),
            "train": train_config,
            "tokenizer": tokenizer.to_json(),
        }
        (temporary / "state.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        write_manifest(temporary)
    return folder


def prune(out_dir: Path, state: TrainState, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best one; `keep` of 0 removes none.

    Those newer than the run itself are damaged ones that a resume went back behind: they do not count.
    """
    if keep:
        for step in [s for s in saved_steps(out_dir) if s <= state.step][keep:]:
            if step != state.best_step:
                shutil.rmtree(folder_of(out_dir, step))


def latest(out_dir: Path, note: Callable[[str], None]) -> Path:
    """The newest intact checkpoint of a run; each damaged one passed over is named through `note`.

    Raises UserError where there is none.
    """
    steps = saved_steps(out_dir)
    for step in steps:
        folder = folder_of(out_dir, step)
        if (problem := manifest_problem(folder)) is None:
            return folder
        note(f"checkpoint {folder} is damaged ({problem}); going back to the one before it")
    if steps:
        raise UserError(f"every checkpoint in {out_dir / 'checkpoints'} is damaged; start again with --overwrite")
    raise UserError(f"{out_dir} holds no checkpoint to resume; start the run with --init_from=scratch")


def restore(folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load weights and optimizer of an intact checkpoint in place; returns where the run stood."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    load_named_state(optimizer, load_file(folder / "optimizer.safetensors"))
    description = read_description(folder)
    return TrainState(**{name: description[name] for name in TrainState.__dataclass_fields__})
