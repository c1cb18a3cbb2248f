"""Our own run folders and checkpoints, as far as reading a model out of them goes."""

from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.formats.bare import stored_tensors
from gpt2.formats.layout import best_step, folder_of, read_description, saved_steps
from gpt2.formats.source import Progress, Source
from gpt2.formats.state_dict import described_config
from gpt2.tokenizers import from_json


def is_checkpoint(path: Path) -> bool:
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


def open_checkpoint(path: Path) -> Source:
    """The model in a checkpoint folder. Raises UserError when it is damaged."""
    if problem := manifest_problem(path):
        raise UserError(f"checkpoint {path} is damaged ({problem}); use another one in {path.parent}")
    return _read(path)


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

    Damaged checkpoints are passed over. Raises UserError where none is left.
    """
    steps = saved_steps(path)
    newest = next((s for s in steps if manifest_problem(folder_of(path, s)) is None), None)
    if newest is None:
        raise UserError(f"{path} holds no intact checkpoint; train it first, or name another model")
    best = best_step(path)
    if best in steps and best != newest and manifest_problem(folder_of(path, best)) is None:
        return _read(folder_of(path, best))
    return _read(folder_of(path, newest))
