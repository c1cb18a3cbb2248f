"""Our own run folders and checkpoints, as far as reading a model out of them goes."""

from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.formats.bare import stored_tensors
from gpt2.formats.layout import best_step, folder_of, read_description, read_saved, saved_steps
from gpt2.formats.source import Progress, Source
from gpt2.formats.state_dict import described_config
from gpt2.tokenizers import from_json


def is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


class UnusableCheckpoint(UserError):
    """A checkpoint that is damaged, or that its run has removed."""


def open_checkpoint(path: Path) -> Source:
    """The model in a checkpoint folder; its files stay open, so that they may be removed meanwhile.

    Raises UnusableCheckpoint when it is damaged or no longer there, and UserError for one of another version.
    """
    try:
        if (problem := manifest_problem(path)) is None:
            return _read(path)
    except (OSError, RuntimeError, UserError):  # the second is what PyTorch raises for a file that is not there
        if path.exists():
            raise
        problem = ""
    if not path.exists():
        raise UnusableCheckpoint(f"checkpoint {path} was removed by its run; name the run, or another checkpoint")
    raise UnusableCheckpoint(f"checkpoint {path} is damaged ({problem}); use another one in {path.parent}")


def _read(path: Path) -> Source:
    description = read_description(path)
    tensors, _ = stored_tensors(path / "model.safetensors")
    tokenizer = from_json(description["tokenizer"])
    optimizer, _ = stored_tensors(path / "optimizer.safetensors")
    return Source(
        config=described_config(description["model"], path),
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


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir() and ((path / "config.toml").is_file() or bool(saved_steps(path)))


def open_run(path: Path) -> Source:
    """The model a run stands for: its best checkpoint by validation loss, or its latest where none is known.

    Damaged checkpoints are passed over. The run may go on meanwhile. Raises UserError where none is left.
    """
    if (source := read_saved(path, lambda steps: _first_usable(path, steps))) is None:
        raise UserError(f"{path} holds no intact checkpoint; train it first, or name another model")
    return source


def _first_usable(path: Path, steps: list[int]) -> Source | None:
    """The best checkpoint of a run, or else the first of `steps` that is intact; None where one was just removed."""
    best = best_step(path)
    for step in sorted(steps, key=lambda step: step != best):
        folder = folder_of(path, step)
        try:
            return open_checkpoint(folder)
        except UnusableCheckpoint:
            if not folder.exists():
                return None
    return None
