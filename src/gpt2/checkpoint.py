"""Checkpoints: folders that are whole or do not exist.

`model.safetensors`, `optimizer.safetensors`, `state.json` and, written last, `manifest.json` with the
SHA-256 of each. There is no random state to store: batches and dropout are functions of (seed, step).
"""

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt2.distributed import ALONE, World, whole, whole_parameters
from gpt2.errors import UserError, first_line
from gpt2.files import manifest_problem, publish, write_manifest, write_text
from gpt2.formats import bare
from gpt2.formats.layout import FORMAT, best_file, folder_of, read_description, saved_steps
from gpt2.model import GPT
from gpt2.optim.adamw import load_named_state, named_state
from gpt2.tokenizers import Tokenizer


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
    about: dict[str, Any],
    world: World = ALONE,
) -> Path:
    """Publish the checkpoint of `state.step` and return its folder.

    `about` is kept for reading: the configuration and the dataset. All processes of the `world` must call, the main
    one writes: the files do not depend on how many they are. Raises OSError where they cannot be written; the
    checkpoints before it stay as they are.
    """
    folder = folder_of(out_dir, state.step)
    parameters = _collected(whole_parameters(model), world)
    moments = _collected(((name, whole(tensor)) for name, tensor in named_state(optimizer).items()), world)

    def write(temporary: Path) -> None:
        temporary.mkdir()
        _write_tensors(parameters, temporary / "model.safetensors", bare.metadata(model.config))
        _write_tensors(moments, temporary / "optimizer.safetensors")
        description = {
            "format": FORMAT,
            **asdict(state),
            "model": asdict(model.config),
            **about,
            "tokenizer": tokenizer.to_json(),
        }
        (temporary / "state.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        write_manifest(temporary)

    def publish_all() -> None:
        with publish(folder) as temporary:
            write(temporary)

    world.main_only(publish_all)
    return folder


def _collected(tensors: Iterable[tuple[str, torch.Tensor]], world: World) -> dict[str, torch.Tensor]:
    """Whole tensors, kept where they are to be written; they come one by one."""
    return {name: t.detach().cpu().contiguous() for name, t in tensors if world.is_main}


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # what its writer makes of a full disk
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def note_best(out_dir: Path, state: TrainState) -> None:
    """Record which checkpoint is the best. A file of its own, because a checkpoint never changes."""
    values = {"step": state.best_step, "val_loss": state.best_val_loss}
    write_text(best_file(out_dir), json.dumps(values) + "\n")


def prune(out_dir: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one; `keep` of 0 removes none."""
    if keep:
        for step in saved_steps(out_dir)[keep:]:
            if step != best_step:
                shutil.rmtree(folder_of(out_dir, step))


def latest(out_dir: Path, note: Callable[[str], None]) -> Path:
    """The newest intact checkpoint of a run.

    Damaged ones that are newer are named through `note` and renamed, so that they are in nobody's way.
    Raises UserError where no intact one is left.
    """
    steps = saved_steps(out_dir)
    problems: dict[Path, str] = {}
    for step in steps:
        folder = folder_of(out_dir, step)
        if (problem := manifest_problem(folder)) is None:
            for damaged, what in problems.items():
                aside = damaged.with_name(f"damaged_{damaged.name}_{time.time_ns()}")
                damaged.rename(aside)
                note(f"checkpoint {damaged} is damaged ({what}), now {aside.name}; going back to {folder.name}")
            return folder
        problems[folder] = problem
    if steps:
        raise UserError(
            f"every checkpoint in {out_dir / 'checkpoints'} is damaged; start anew with --init_from=scratch "
            "--overwrite"
        )
    raise UserError(f"{out_dir} holds no checkpoint to resume; start the run with --init_from=scratch")


def restore(folder: Path, model: GPT) -> TrainState:
    """Load the weights of an intact checkpoint in place; returns where the run stood."""
    model.load_state_dict(load_file(folder / "model.safetensors"))
    description = read_description(folder)
    return TrainState(**{name: description[name] for name in TrainState.__dataclass_fields__})


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state of an intact checkpoint, or this process's part of it, in place."""
    load_named_state(optimizer, load_file(folder / "optimizer.safetensors"))
