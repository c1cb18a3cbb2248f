"""Where a run keeps its checkpoints."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpt2.errors import UserError

FORMAT = "gpt2 checkpoint 1"
MOST_TRIES = 100
"""Lists of checkpoints that are tried. A run changes the list no more than once an update."""
LOOKS, PAUSE = 3, 0.02
"""How often, and after how many seconds each, a list must be the same to count as settled."""
T = TypeVar("T")


def folder_of(out_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of `step`."""
    return out_dir / "checkpoints" / f"step_{step:07d}"


def saved_steps(out_dir: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first; whether they are intact is not looked at."""
    folders = (out_dir / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]) for f in folders if re.fullmatch(r"step_\d{7,}", f.name)), reverse=True)


def read_saved(out_dir: Path, read: Callable[[list[int]], T | None]) -> T | None:
    """What `read` makes of the steps that have a checkpoint, newest first; None where it makes nothing of them.

    A run that trains may remove a checkpoint between listing and reading, so `read` gets the new list when the list
    has changed.
    """
    for _ in range(MOST_TRIES):
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
    """Where a run notes which of its checkpoints has the lowest validation loss."""
    return out_dir / "checkpoints" / "best.json"


def best_step(out_dir: Path) -> int | None:
    """Step of the checkpoint with the lowest validation loss, where that is known."""
    try:
        return int(json.loads(best_file(out_dir).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_description(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of an intact checkpoint. Raises UserError for one of another version's."""
    description = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if description["format"] != FORMAT:
        raise UserError(f"{checkpoint} has format {description['format']!r}; this version reads {FORMAT!r}")
    return description
