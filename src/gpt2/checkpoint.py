"""Checkpoints: folders that are whole or do not exist.

`model.safetensors`, `optimizer.safetensors`, `state.json` and, written last, `manifest.json` with the
SHA-256 of each. There is no random state to store: batches and dropout are functions of (seed, step).
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gpt2.distributed.parts import part_like, part_of, parts_of
from gpt2.distributed.world import ALONE, World
from gpt2.errors import UserError, first_line
from gpt2.files import MANIFEST, free_bytes, manifest_problem, publish, temporary_of, write_manifest, write_text
from gpt2.formats import safetensors_file
from gpt2.formats.run_folder import FORMAT, best_file, folder_of, read_description, saved_steps
from gpt2.model import GPT
from gpt2.optim.optimizers import load_named_state, named_state
from gpt2.tensor_file import Layout, TensorShard, specs_of
from gpt2.tokenizers import Tokenizer

FILES = frozenset({"model.safetensors", "optimizer.safetensors", "state.json", MANIFEST})
"""The files of a checkpoint."""


@dataclass
class TrainState:
    """What a run knows besides its weights. `step` counts the optimizer updates made."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Time spent training, over all resumes."""
    best_val_loss: float | None = None
    best_step: int | None = None
    left_out: int = 0
    """Updates whose batches were passed over after loss spikes: update n has the batch n + left_out."""
    recent_losses: list[float] = field(default_factory=list)
    """Of the last updates, where spikes are looked for."""
    return_to: int | None = None
    """Step of the checkpoint to go back to after a spike: the last that a run saves that nobody stops."""
    returns: int = 0
    """How often the run went back there."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The float16 gradient scaler's state; empty for other formats."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is to hold: this process's parts of it, and what is said about it."""

    folder: Path
    weights: dict[str, TensorShard]
    moments: dict[str, TensorShard]
    """The optimizer's state."""
    metadata: dict[str, str]
    description: str
    """Content of `state.json`."""


def snapshot(
    out_dir: Path,
    state: TrainState,
    model: GPT,
    optimizers: Sequence[torch.optim.Optimizer],
    tokenizer: Tokenizer,
    about: dict[str, Any],
) -> Snapshot:
    """What is to be saved of `state.step`; its tensors are those of the run, and change with it.

    `about` is kept for reading: the configuration and the dataset.
    """
    description = {
        "format": FORMAT,
        **asdict(state),
        "model": asdict(model.config),
        **about,
        "tokenizer": tokenizer.to_json(),
    }
    return Snapshot(
        folder_of(out_dir, state.step),
        parts_of(model),
        {name: part_of(tensor) for name, tensor in named_state(optimizers).items()},
        safetensors_file.metadata(model.config),
        json.dumps(description, indent=1) + "\n",
    )


def write(taken: Snapshot, world: World = ALONE) -> None:
    """Publish a checkpoint: every process of the `world` writes what only it has, into the same files.

    The files do not depend on how many the processes are, which need one file system. Raises UserError, in all, where
    they cannot be written; the checkpoints before it stay as they are.
    """
    files = {"model.safetensors": (taken.weights, taken.metadata), "optimizer.safetensors": (taken.moments, None)}
    held = world.gather([specs_of(parts) for parts, _ in files.values()])
    layouts, mine = {}, {}
    for number, (name, (parts, metadata)) in enumerate(files.items()):
        layouts[name] = Layout({key: kind for has in held for key, kind in has[number].items()}, metadata)
        before = {key for has in held[: world.rank] for key in has[number]}
        mine[name] = {key: part for key, part in parts.items() if key not in before or not part.is_full}
    needed = sum(layout.size for layout in layouts.values()) + len(taken.description.encode())

    def begin() -> None:
        temporary = stack.enter_context(publish(taken.folder, folder=True))
        if free_bytes(taken.folder.parent) < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, layout in layouts.items():
            layout.create(temporary / name)

    def write_mine() -> None:
        for name, layout in layouts.items():
            layout.write(temporary_of(taken.folder) / name, mine[name])

    def seal() -> None:
        temporary = temporary_of(taken.folder)
        (temporary / "state.json").write_text(taken.description, encoding="utf-8")
        write_manifest(temporary)
        stack.close()  # publishes

    with ExitStack() as stack:
        world.main_only(lambda: _on_disk(begin, taken.folder, needed))
        world.agreed(lambda: _on_disk(write_mine, taken.folder, needed))
        world.main_only(lambda: _on_disk(seal, taken.folder, needed))


def _on_disk(work: Callable[[], None], folder: Path, needed: int) -> None:
    """Do what may fail for the disk's sake. Raises UserError then."""
    try:
        work()
    except OSError as error:
        raise UserError(
            f"cannot save {folder} ({error.strerror or error}): it needs {needed:,} bytes and {free_bytes(folder):,} "
            "are free; the checkpoints before it are intact: make room, and go on with --init_from=resume"
        ) from error


def tidy(out_dir: Path, state: TrainState, keep: int, note: Callable[[str], None]) -> None:
    """Once the checkpoint of `state.step` is on disk: record which is the best, and remove those not kept.

    `note` receives a line where the disk does not allow that; nothing is lost then, and the next save tries again.
    """
    try:
        if state.best_step in saved_steps(out_dir):  # perhaps of a process that was killed before it recorded it
            note_best(out_dir, state)
        prune(out_dir, keep, {state.best_step, state.return_to})
    except (OSError, UserError) as error:
        note(f"cannot remove old checkpoints in {out_dir / 'checkpoints'} ({first_line(error)})")


def note_best(out_dir: Path, state: TrainState) -> None:
    """Record which checkpoint is the best. A file of its own, because a checkpoint never changes."""
    values = {"step": state.best_step, "val_loss": state.best_val_loss}
    write_text(best_file(out_dir), json.dumps(values) + "\n")


def prune(out_dir: Path, keep: int, protected: Container[int | None]) -> None:
    """Remove all but the newest `keep` checkpoints and the `protected` steps; `keep` of 0 removes none.

    Only what this program wrote is removed: a folder with other files in it and a link to one elsewhere stay. A
    checkpoint is renamed before it is removed, so that nobody ever finds half of it.
    """
    if keep:
        for step in saved_steps(out_dir)[keep:]:
            folder = folder_of(out_dir, step)
            if step not in protected and is_ours(folder):
                shutil.rmtree(folder.replace(temporary_of(folder)))


def is_ours(folder: Path) -> bool:
    """Whether a folder, which is no link, holds nothing but a checkpoint of this program, damaged or not."""
    if folder.is_symlink() or not folder.is_dir() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    with suppress(OSError, ValueError, KeyError, TypeError, UserError):
        return bool(read_description(folder))
    with suppress(OSError, ValueError, KeyError, TypeError):
        return set(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]) == FILES - {MANIFEST}
    return False


def latest(out_dir: Path, note: Callable[[str], None], at_most: int | None = None) -> Path:
    """The newest intact checkpoint of a run, of step `at_most` or before where that is given.

    Damaged ones that are newer are named through `note` and renamed, so that they are in nobody's way.
    Raises UserError where no intact one is left.
    """
    steps = [step for step in saved_steps(out_dir) if at_most is None or step <= at_most]
    problems: dict[Path, str] = {}
    for step in steps:
        folder = folder_of(out_dir, step)
        if (problem := manifest_problem(folder)) is None:
            for damaged, what in problems.items():
                _set_aside(damaged, what, folder, note)
            return folder
        problems[folder] = problem
    if steps:
        raise UserError(
            f"every checkpoint in {out_dir / 'checkpoints'} is damaged; start anew with --init_from=scratch "
            "--overwrite"
        )
    raise UserError(f"{out_dir} holds no checkpoint to resume; start the run with --init_from=scratch")


def _set_aside(damaged: Path, problem: str, instead: Path, note: Callable[[str], None]) -> None:
    """Rename a damaged checkpoint, unless it is not this program's, and say so."""
    if not is_ours(damaged):
        note(f"{damaged} is no checkpoint of this program ({problem}); going back to {instead.name}")
        return
    aside = damaged.with_name(f"damaged_{damaged.name}_{time.time_ns()}")
    damaged.rename(aside)
    note(f"checkpoint {damaged} is damaged ({problem}), now {aside.name}; going back to {instead.name}")


def restore(folder: Path, model: GPT) -> TrainState:
    """Load the weights of an intact checkpoint, or this process's part of them, in place; returns where it stood."""
    with safe_open(folder / "model.safetensors", framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(part_like(parameter, file.get_tensor(name)))
    description = read_description(folder)
    return TrainState(**{name: description[name] for name in TrainState.__dataclass_fields__ if name in description})


def restore_optimizers(folder: Path, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the optimizers' state of an intact checkpoint, or this process's part of it, in place."""
    with safe_open(folder / "optimizer.safetensors", framework="pt") as file:
        load_named_state(optimizers, Lazily({name: partial(file.get_tensor, name) for name in file.keys()}))  # noqa: SIM118


class Lazily(Mapping[str, torch.Tensor]):
    """Tensors that are read when they are asked for, so that a process reads what it is to keep."""

    def __init__(self, read: dict[str, Callable[[], torch.Tensor]]) -> None:
        self.read = read

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)
