"""Where a run keeps its checkpoints."""

import json
import re
from pathlib import Path
from typing import Any

from gpt2.errors import UserError

FORMAT = "gpt2 checkpoint 1"


def folder_of(out_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of `step`."""
    return out_dir / "checkpoints" / f"step_{step:07d}"


def saved_steps(out_dir: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first; whether they are intact is not looked at."""
    folders = (out_dir / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]) for f in folders if re.fullmatch(r"step_\d{7,}", f.name)), reverse=True)


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
