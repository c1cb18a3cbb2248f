"""Where a run keeps its checkpoints."""

import re
from pathlib import Path

FORMAT = "gpt2 checkpoint 1"


def folder_of(out_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of `step`."""
    return out_dir / "checkpoints" / f"step_{step:07d}"


def saved_steps(out_dir: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first; whether they are intact is not looked at."""
    folders = (out_dir / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]) for f in folders if re.fullmatch(r"step_\d{7,}", f.name)), reverse=True)
