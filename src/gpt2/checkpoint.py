"""Checkpoints: folders that are complete or do not exist.

A folder has `model.safetensors`, `optimizer.safetensors`, `state.json` and, written last, `manifest.json` with the
SHA-256 of each. No random state is stored: batches and dropout are functions of (seed, step).
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2.distributed.sharding import shard_like, shard_of, shards_of
from gpt2.distributed.world import ALONE, World
from gpt2.errors import Log, UserError, first_line
from gpt2.files import MANIFEST, free_bytes, manifest_problem, publish, temporary_of, write_manifest, write_text
from gpt2.formats import safetensors_file
from gpt2.formats.run_folder import (
    CONTENT,
    FORMAT,
    best_file,
    damaged_run,
    folder_of,
    read_description,
    saved_steps,
)
from gpt2.formats.source import StoredTensor
from gpt2.json_file import read_object
from gpt2.model import GPT
from gpt2.optim.optimizers import load_named_state, named_state
from gpt2.tensor_file import Layout, TensorShard, specs_of
from gpt2.tokenizers import Tokenizer

FILES = frozenset({*CONTENT, MANIFEST})
"""The files of a checkpoint."""
STATE_KEYS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum"})
"""What AdamW and Muon keep of a parameter."""
ANOTHER = "delete that checkpoint, so that an earlier one is used"


@dataclass
class TrainState:
    """A training state is what a run knows besides its weights and optimizer state."""

    step: int = 0
    """Number of optimizer steps made."""
    tokens: int = 0
    """Number of tokens trained on."""
    seconds: float = 0.0
    """Seconds spent training, over all resumes."""
    best_val_loss: float | None = None
    best_step: int | None = None
    skipped_batches: int = 0
    """Number of steps whose batches were skipped after loss spikes: step n has the batch n + skipped_batches."""
    recent_losses: list[float] = field(default_factory=list)
    """Losses of the last steps, with which a spike is compared; empty where spikes are not watched."""
    return_to: int | None = None
    """Step of the checkpoint to return to after a spike: the last one that an uninterrupted run has too."""
    returns: int = 0
    """Number of returns to that checkpoint."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the float16 gradient scaler; empty for other dtypes."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, as far as this process has it."""

    folder: Path
    weights: dict[str, TensorShard]
    """This process's shard of every parameter."""
    optimizer_state: dict[str, TensorShard]
    """This process's shard of the optimizer state."""
    metadata: dict[str, str]
    """Metadata of `model.safetensors`."""
    description: str
    """Content of `state.json`."""


def take(
    out_dir: Path,
    state: TrainState,
    model: GPT,
    optimizers: Sequence[torch.optim.Optimizer],
    tokenizer: Tokenizer,
    about: dict[str, Any],
) -> Checkpoint:
    """Return the checkpoint of `state.step`. Its tensors share the memory of the run's and change with them.

    about: more entries of `state.json`: the configuration, the dataset and the machine.
    """
    description = {
        "format": FORMAT,
        **asdict(state),
        "model": asdict(model.config),
        **about,
        "tokenizer": tokenizer.to_json(),
    }
    return Checkpoint(
        folder_of(out_dir, state.step),
        shards_of(model),
        {name: shard_of(tensor) for name, tensor in named_state(optimizers).items()},
        safetensors_file.metadata(model.config),
        json.dumps(description, indent=1) + "\n",
    )


def write(taken: Checkpoint, world: World = ALONE) -> None:
    """Write a checkpoint; every process of the `world` writes its shards into the same files, on one file system.

    The files do not depend on the number of processes. Raises UserError, in all processes, where they cannot be
    written; earlier checkpoints stay intact.
    """
    files = {
        "model.safetensors": _planned(taken.weights, taken.metadata, world),
        "optimizer.safetensors": _planned(taken.optimizer_state, None, world),
    }
    needed = sum(layout.size for layout, _ in files.values()) + len(taken.description.encode())

    def begin() -> None:
        temporary = stack.enter_context(publish(taken.folder, folder=True))
        if free_bytes(taken.folder.parent) < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, (layout, _) in files.items():
            layout.create(temporary / name)

    def write_shards() -> None:
        for name, (layout, shards) in files.items():
            layout.write(temporary_of(taken.folder) / name, shards)

    def seal() -> None:
        temporary = temporary_of(taken.folder)
        (temporary / "state.json").write_text(taken.description, encoding="utf-8", newline="\n")
        write_manifest(temporary)
        stack.close()  # publishes

    with ExitStack() as stack:
        world.main_only(lambda: _on_disk(begin, taken.folder, needed))
        world.agreed(lambda: _on_disk(write_shards, taken.folder, needed))
        world.main_only(lambda: _on_disk(seal, taken.folder, needed))


def _planned(
    tensors: dict[str, TensorShard], metadata: dict[str, str] | None, world: World
) -> tuple[Layout, dict[str, TensorShard]]:
    """Return the layout of a file of the tensors of all processes, and the shards that this process writes into it.

    A full tensor that several processes hold is written by the one with the lowest rank.
    """
    held = world.gather(specs_of(tensors))  # by every process
    layout = Layout({name: spec for specs in held for name, spec in specs.items()}, metadata)
    earlier = {name for specs in held[: world.rank] for name in specs}
    own = {k: t for k, t in tensors.items() if not t.is_copy and not (t.is_full and k in earlier)}
    return layout, own


def _on_disk(work: Callable[[], None], folder: Path, needed: int) -> None:
    """Do the work. Raises UserError where the disk does not allow it."""
    try:
        work()
    except OSError as error:
        raise UserError(
            f"cannot save {folder} ({error.strerror or error}): it needs {needed:,} bytes and {free_bytes(folder):,} "
            "are free; checkpoints from before are intact: make room, and go on with --init_from=auto"
        ) from error


def tidy(out_dir: Path, state: TrainState, keep: int, log: Log) -> None:
    """Record which checkpoint is the best, and remove old ones, once the checkpoint of `state.step` is on disk.

    log: receives a line where the disk does not allow that; nothing is lost then, and the next save tries again.
    """
    try:
        if state.best_step in saved_steps(out_dir):  # it may be from a process that was killed before this
            record_best(out_dir, state)
        prune(out_dir, keep, {state.best_step, state.return_to})
    except (OSError, UserError) as error:
        log(f"cannot remove old checkpoints in {out_dir / 'checkpoints'} ({first_line(error)})")


def record_best(out_dir: Path, state: TrainState) -> None:
    """Record which checkpoint is the best, in a separate file, because a checkpoint never changes."""
    values = {"step": state.best_step, "val_loss": state.best_val_loss}
    write_text(best_file(out_dir), json.dumps(values) + "\n")


def prune(out_dir: Path, keep: int, protected: Container[int | None]) -> None:
    """Remove all but the newest `keep` checkpoints and the `protected` steps; a `keep` of 0 removes none.

    Only what this program wrote is removed: a folder with other files and a link to a folder elsewhere stay.
    """
    if keep:
        for step in saved_steps(out_dir)[keep:]:
            folder = folder_of(out_dir, step)
            if step not in protected and is_checkpoint_of_this_program(folder):
                remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that no reader ever finds half of it."""
    shutil.rmtree(folder.replace(temporary_of(folder)))


def is_checkpoint_of_this_program(folder: Path) -> bool:
    """Return whether a folder is no link and holds only a checkpoint of this program, damaged or not."""
    if folder.is_symlink() or not folder.is_dir() or not {path.name for path in folder.iterdir()} <= FILES:
        return False
    with suppress(OSError, UserError):
        return bool(read_description(folder))
    with suppress(OSError, UserError):
        return read_object(folder / MANIFEST, "delete it").section("files").values.keys() == set(CONTENT)
    return False


def latest(out_dir: Path, log: Log, at_most: int | None = None) -> Path:
    """Return the folder of the newest intact checkpoint of a run, of step `at_most` or earlier where that is given.

    Newer checkpoints that are damaged are logged and renamed, so that they do not get in the way. Raises UserError
    where no intact one is left.
    """
    steps = [step for step in saved_steps(out_dir) if at_most is None or step <= at_most]
    problems: dict[Path, str] = {}
    for step in steps:
        folder = folder_of(out_dir, step)
        if (problem := manifest_problem(folder, CONTENT)) is None:
            for damaged, what in problems.items():
                _set_aside(damaged, what, folder, log)
            return folder
        problems[folder] = problem
    if steps and at_most is not None:
        raise UserError(f"every checkpoint of {out_dir} up to step {at_most} is damaged")
    if steps:
        raise UserError(damaged_run(out_dir, problems))
    raise UserError(f"{out_dir} holds no checkpoint to resume; start a new run with --init_from=auto")


def _set_aside(damaged: Path, problem: str, instead: Path, log: Log) -> None:
    """Rename a damaged checkpoint, unless another program wrote it, and log that."""
    if not is_checkpoint_of_this_program(damaged):
        log(f"{damaged} is no checkpoint of this program ({problem}); going back to {instead.name}")
        return
    aside = damaged.with_name(f"damaged_{damaged.name}_{time.time_ns()}")
    damaged.rename(aside)
    log(f"checkpoint {damaged} is damaged ({problem}), now {aside.name}; going back to {instead.name}")


def restore(folder: Path, model: GPT) -> TrainState:
    """Load this process's shard of the weights of an intact checkpoint, in place; return its training state.

    Raises UserError where the model has other parameters than the checkpoint.
    """
    tensors, _ = safetensors_file.read_tensors(folder / "model.safetensors")
    if different := tensors.keys() ^ {name for name, _ in model.named_parameters()}:
        raise UserError(
            f"{folder} and the model do not have the same parameters: only one of them has {min(different)}; "
            "resume with the model that the run began with"
        )
    for name, parameter in model.named_parameters():
        _require_shape(folder, name, tensors[name], parameter.shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(shard_like(parameter, tensors[name].read()))
    description = read_description(folder)
    return TrainState(**{name: description[name] for name in TrainState.__dataclass_fields__ if name in description})


def restore_optimizers(folder: Path, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load this process's shard of the optimizer state of an intact checkpoint, in place.

    Raises UserError where the state does not fit the parameters.
    """
    tensors, _ = safetensors_file.read_tensors(folder / "optimizer.safetensors")
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            _check_state(folder, name, parameter.shape, tensors)
    load_named_state(optimizers, LazyTensors({name: tensor.read for name, tensor in tensors.items()}))


def _check_state(folder: Path, name: str, shape: Sequence[int], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise UserError unless the optimizer state of a parameter is complete, or missing, and has its shape."""
    found = {key for keys in STATE_KEYS for key in keys if f"{name}/{key}" in tensors}
    if found and found not in STATE_KEYS:
        raise UserError(f"{folder} has only {', '.join(sorted(found))} of the optimizer state of {name}; {ANOTHER}")
    for key in found:
        _require_shape(folder, f"{name}/{key}", tensors[f"{name}/{key}"], () if key == "step" else shape)


def _require_shape(folder: Path, name: str, tensor: StoredTensor, wanted: Sequence[int]) -> None:
    if tensor.shape != tuple(wanted):
        raise UserError(f"{folder} has {name} of shape {tensor.shape}, not {tuple(wanted)}; {ANOTHER}")


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name that are read on access, so that a process reads only its share."""

    def __init__(self, read: dict[str, Callable[[], torch.Tensor]]) -> None:
        self.read = read

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)
