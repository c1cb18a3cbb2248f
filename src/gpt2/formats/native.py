"""Our own run folders and checkpoints, as far as reading a model out of them goes."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.formats.source import Source
from gpt2.model import GPTConfig
from gpt2.tokenizers import from_json


def folder_of(out_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of `step`."""
    return out_dir / "checkpoints" / f"step_{step:07d}"


def saved_steps(out_dir: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first; whether they are intact is not looked at."""
    folders = (out_dir / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]) for f in folders if re.fullmatch(r"step_\d{7,}", f.name)), reverse=True)


def read_description(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of an intact checkpoint."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


def open_checkpoint(path: Path) -> Source:
    """The model in a checkpoint folder. Raises UserError when it is damaged."""
    if problem := manifest_problem(path):
        raise UserError(f"checkpoint {path} is damaged ({problem}); use another one in {path.parent}")
    description = read_description(path)
    tensors = load_file(path / "model.safetensors")
    origin = f"{path} (step {description['step']})"
    return Source(GPTConfig(**description["model"]), tensors.items(), from_json(description["tokenizer"]), origin)


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def open_run(path: Path) -> Source:
    """The model a run stands for: its best checkpoint by validation loss, or its latest where none is known.

    Damaged checkpoints are passed over. Raises UserError where none is left.
    """
    intact = [s for s in saved_steps(path) if manifest_problem(folder_of(path, s)) is None]
    if not intact:
        raise UserError(f"{path} holds no intact checkpoint; train it first, or name another model")
    best = read_description(folder_of(path, intact[0]))["best_step"]
    return open_checkpoint(folder_of(path, best if best in intact else intact[0]))
