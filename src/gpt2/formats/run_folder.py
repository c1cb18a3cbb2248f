"""The folder of a run: where its checkpoints are, and how a model is read from it.

`torch` is imported only where a model is opened, because the command line asks for a run's checkpoints before that.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.json_file import JsonObject, read_object
from gpt2.tokenizers import Tokenizer, from_json

if TYPE_CHECKING:
    from gpt2.formats.source import Source
    from gpt2.model import GPTConfig

FORMAT = "gpt2 checkpoint 1"
"""Version of the format, which `state.json` records."""
CONTENT = ("model.safetensors", "optimizer.safetensors", "state.json")
"""The files of a checkpoint, which its manifest lists."""
MAX_TRIES = 100
"""Largest number of lists of checkpoints that are tried. A run changes the list at most once per step."""
LOOKS, PAUSE = 3, 0.02
"""A list counts as settled when it stays the same for this number of looks, with a pause of seconds between them."""
STATE_VALUES: dict[str, Callable[[JsonObject, str], object]] = {
    **dict.fromkeys(("tokens", "best_step", "skipped_batches", "return_to", "returns"), JsonObject.integer),
    **dict.fromkeys(("seconds", "best_val_loss"), JsonObject.number),
    **dict.fromkeys(("model", "train", "dataset", "machine", "scaler"), JsonObject.section),
    "recent_losses": JsonObject.numbers,
    "own_layers": JsonObject.flag,
}
"""The checks of the values of a `state.json` that an older one may lack."""
MAY_BE_NULL = ("best_step", "best_val_loss", "return_to")
MODEL_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
MOST_OF_A_SIZE = (1 << 31) - 1
"""Largest of the sizes of a model that is believed."""
MOST_SHOWN = 3
"""Largest number of damaged checkpoints that an error names."""
T = TypeVar("T")


class UnusableCheckpoint(UserError):
    """A checkpoint is damaged, or its run has removed it. `problem` says in a few words how it is damaged."""

    problem = ""


def folder_of(out_dir: Path, step: int) -> Path:
    """Return the folder in which a run keeps its checkpoint of `step`."""
    return out_dir / "checkpoints" / f"step_{step:07d}"


def saved_steps(out_dir: Path) -> list[int]:
    """Return the steps that have a checkpoint folder, newest first, without checking that these are intact."""
    folders = (out_dir / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]) for f in folders if re.fullmatch(r"step_\d{7,}", f.name)), reverse=True)


def snapshot_file(out_dir: Path, step: int) -> Path:
    """Return the file in which a run keeps its snapshot of `step`: the weights alone, in bfloat16."""
    return out_dir / "snapshots" / f"step_{step:07d}.safetensors"


def snapshot_steps(out_dir: Path) -> list[int]:
    """Return the steps that have a snapshot's file, oldest first, without reading these."""
    files = (out_dir / "snapshots").glob("step_*.safetensors")
    return sorted(int(f.stem[5:]) for f in files if re.fullmatch(r"step_\d{7,}", f.stem))


def weights_by_step(out_dir: Path) -> dict[int, Path]:
    """Return the snapshots and checkpoints of a run by step, oldest first; of a step that has both, the snapshot."""
    found = {step: folder_of(out_dir, step) for step in saved_steps(out_dir)}
    found |= {step: snapshot_file(out_dir, step) for step in snapshot_steps(out_dir)}
    return dict(sorted(found.items()))


def snapshot_metadata(config: "GPTConfig", tokenizer: Tokenizer, step: int, own_layers: bool) -> dict[str, str]:
    """Return the metadata of a snapshot, with which its file is a model of its own.

    own_layers: whether the model has other layers than this program's GPT, so that only its program can build it.
    """
    from gpt2.formats.safetensors_file import ENTRY, metadata

    about = json.loads(metadata(config, tokenizer)[ENTRY])
    return {ENTRY: json.dumps(about | {"step": step} | ({"own_layers": True} if own_layers else {}))}


def read_snapshot(path: Path) -> JsonObject | None:
    """Return what the metadata of a snapshot says; None for any other file."""
    from gpt2.formats.safetensors_file import ENTRY, read_tensors

    try:
        _, found = read_tensors(path)
        about = json.loads(found.get(ENTRY, "{}"))
    except (OSError, ValueError, RecursionError, UserError):
        return None
    is_snapshot = isinstance(about, dict) and "step" in about
    return JsonObject(about, str(path), "use another snapshot") if is_snapshot else None


def open_safetensors(path: Path) -> "Source":
    """Open a snapshot of a run, or any other `.safetensors` file. Raises UserError."""
    from gpt2.formats.safetensors_file import open_file
    from gpt2.formats.source import Progress

    about = read_snapshot(path)
    if about is None:
        return open_file(path)
    step = about.integer("step")
    if about.has("own_layers"):
        raise UserError(
            f"{path} is of a model with layers of its own, which only the program that trained it can build"
        )
    return replace(open_file(path), origin=f"{path} (step {step})", progress=Progress(step=step))


def read_saved(out_dir: Path, read: Callable[[list[int]], T | None]) -> T | None:
    """Return what `read` makes of the steps that have a checkpoint, newest first; None where it makes nothing.

    A run that trains may remove a checkpoint between listing and reading. `read` is therefore called again with the
    new list when the list has changed.
    """
    for _ in range(MAX_TRIES):
        steps = saved_steps(out_dir)
        if (found := read(steps)) is not None:
            return found
        if _is_settled(out_dir, steps):
            break
    return None


def _is_settled(out_dir: Path, steps: list[int]) -> bool:
    for _ in range(LOOKS):
        if saved_steps(out_dir) != steps:
            return False
        time.sleep(PAUSE)
    return True


def best_file(out_dir: Path) -> Path:
    """Return the file in which a run records its checkpoint with the lowest validation loss."""
    return out_dir / "checkpoints" / "best.json"


def best_step(out_dir: Path) -> int | None:
    """Return the step of the checkpoint with the lowest validation loss; None where that is not known."""
    try:
        return read_object(best_file(out_dir), "delete it").integer("step")
    except (OSError, UserError):
        return None


def read_description(checkpoint: Path) -> dict[str, Any]:
    """Return `state.json` of an intact checkpoint, whose values have the types that its readers rely on.

    Raises FileNotFoundError, and UserError for a checkpoint of another version and for a wrong value.
    """
    about = read_object(checkpoint / "state.json", "use another checkpoint")
    if (found := about.text("format")) != FORMAT:
        about.fail(f"has format {found[:80]!r}, but this version reads {FORMAT!r}")
    about.values.setdefault("skipped_batches", about.values.get("left_out", 0))  # its name in older checkpoints
    about.integer("step")
    for key, check in STATE_VALUES.items():
        if about.has(key) or (key in about.values and key not in MAY_BE_NULL):
            check(about, key)
    model, scaler = about.section("model"), about.section("scaler") if about.has("scaler") else None
    for key in MODEL_SIZES:
        model.integer(key, 1, MOST_OF_A_SIZE)
    about.section("tokenizer").text("kind")
    for key in ("train", "dataset"):
        about.values.setdefault(key, {})
    if (settings := about.section("train")).has("init_from"):
        settings.text("init_from")
    if scaler is not None and scaler.values:
        for key in ("scale", "growth_factor", "backoff_factor"):
            scaler.number(key)
        for key in ("growth_interval", "_growth_tracker"):
            scaler.integer(key)
    return about.values


def open_run(path: Path) -> "Source":
    """Open the best checkpoint of a run by validation loss, or its latest where none is known to be the best.

    Damaged checkpoints are skipped. The run may train on meanwhile. Raises UserError where no intact one is left.
    """
    problems: dict[Path, str] = {}
    if (source := read_saved(path, lambda steps: _first_usable(path, steps, problems))) is not None:
        return source
    if problems:
        raise UserError(damaged_run(path, problems))
    raise UserError(f"{path} holds no checkpoint; train it first, or name another model")


def damaged_run(out_dir: Path, problems: Mapping[Path, str]) -> str:
    """Return the line about a run without an intact checkpoint: how each is damaged, and what can be done.

    problems: the folders of the checkpoints, each with what is wrong in it.
    """
    shown = [f"{folder.name} ({problem})" for folder, problem in list(problems.items())[:MOST_SHOWN]]
    shown += [f"{len(problems) - MOST_SHOWN} more"] if len(problems) > MOST_SHOWN else []
    weights = [f"take the weights in {snapshot_file(out_dir, step)}" for step in snapshot_steps(out_dir)[-1:]]
    advice = ", ".join(["put back a copy of one", *weights, "or train again with --overwrite"])
    return f"every checkpoint in {out_dir / 'checkpoints'} is damaged: {', '.join(shown)}; {advice}"


def _first_usable(path: Path, steps: list[int], problems: dict[Path, str]) -> "Source | None":
    """Open the best checkpoint of a run, or else the first intact one; return None if one was just removed.

    problems: receives the folders of the damaged checkpoints, each with what is wrong in it.
    """
    problems.clear()
    best = best_step(path)
    for step in sorted(steps, key=lambda step: step != best):
        folder = folder_of(path, step)
        try:
            return open_checkpoint(folder)
        except UnusableCheckpoint as error:
            if not folder.exists():
                return None
            problems[folder] = error.problem
    return None


def open_checkpoint(path: Path) -> "Source":
    """Open a checkpoint folder. Its files stay open, so that the run may remove them meanwhile.

    Raises UnusableCheckpoint when it is damaged or was removed, and UserError for one of another version.
    """
    try:
        if (problem := manifest_problem(path, CONTENT)) is None:
            return _read(path)
    except (OSError, RuntimeError, UserError):  # PyTorch raises RuntimeError for a missing file
        if path.exists():
            raise
        problem = ""
    if not path.exists():
        raise UnusableCheckpoint(f"checkpoint {path} was removed by its run; name the run, or another checkpoint")
    damaged = UnusableCheckpoint(f"checkpoint {path} is damaged ({problem}); use another one in {path.parent}")
    damaged.problem = problem
    raise damaged


def _read(path: Path) -> "Source":
    from gpt2.formats.safetensors_file import read_tensors
    from gpt2.formats.source import Progress, Source, checked_config

    description = read_description(path)
    if description.get("own_layers"):
        raise UserError(
            f"{path} is of a model with layers of its own, which only the program that trained it can build; load "
            f"{path / 'model.safetensors'} into it"
        )
    tensors, _ = read_tensors(path / "model.safetensors")
    tokenizer = from_json(description["tokenizer"])
    optimizer, _ = read_tensors(path / "optimizer.safetensors")
    return Source(
        config=checked_config(description["model"], path),
        tensors=tensors,
        find_tokenizer=lambda: tokenizer,
        origin=f"{path} (step {description['step']})",
        progress=Progress(
            step=description["step"],
            settings=description.get("train", {}),
            best_val_loss=description.get("best_val_loss"),
            optimizer=(lambda: {name: t.read() for name, t in optimizer.items()}) if optimizer else None,
        ),
    )
