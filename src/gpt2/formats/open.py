"""Opens the `MODEL` of a command line: any path or name, recognised by its content."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gpt2.accounting import parameter_shapes
from gpt2.errors import UserError, first_line
from gpt2.formats import gguf, huggingface, llmc, nanogpt, run_folder
from gpt2.formats.source import Source, StoredTensor
from gpt2.formats.tokenizer_files import DESCRIPTION, open_tokenizer
from gpt2.model import GPT
from gpt2.spelling import did_you_mean
from gpt2.tokenizers import Tokenizer

Convert = Callable[[str, nn.Module], nn.Module]
"""Returns the module that takes the place of a module with this name."""
TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""First bytes of PyTorch's files: a zip archive, or before PyTorch 1.6 a pickle of their magic number."""
KINDS = "run, checkpoint, Hugging Face folder, nanoGPT or build-nanogpt checkpoint, llm.c .bin, GGUF or .safetensors"
ADAPTER = "adapter_config.json"
"""File that describes a LoRA adapter of PEFT."""
MODEL_FILE = re.compile(r"model.*\.(pt|bin)|.*\.(gguf|safetensors|ckpt)")
"""Names of models among the files of a trainer, which keeps optimizer states in files of the same kinds."""


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "state.json").is_file()


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    if not (folder / "checkpoints").is_dir():
        return False
    return (folder / "config.toml").is_file() or bool(run_folder.saved_steps(folder))


def _is_huggingface(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _is_safetensors(start: bytes, size: int) -> bool:
    return len(start) >= 9 and int.from_bytes(start[:8], "little") <= size - 8 and start[8:9] == b"{"


def _is_llmc(start: bytes, size: int) -> bool:
    return size >= llmc.HEADER_BYTES and int.from_bytes(start[:4], "little") in llmc.MAGICS


# Folders are recognised by the files in them, and the first match counts.
FOLDERS = (
    (_is_checkpoint, run_folder.open_checkpoint),
    (is_run, run_folder.open_run),
    (_is_huggingface, huggingface.open_folder),
    (lambda folder: (folder / "ckpt.pt").is_file(), lambda folder: nanogpt.open_file(folder / "ckpt.pt")),
    (lambda folder: llmc.model_in(folder) is not None, llmc.open_folder),
)
# Files are recognised by their first bytes and their size, and the first match counts.
FILES = (
    (lambda start, size: start.startswith(TORCH_STARTS), nanogpt.open_file),
    (lambda start, size: start.startswith(b"GGUF"), gguf.open_file),
    (_is_llmc, llmc.open_file),
    (_is_safetensors, run_folder.open_safetensors),
)


def path_text(argument: str, value: object) -> str:
    """Return the path or the name that is given for an `argument` as text. Raises UserError for another type."""
    if not isinstance(value, str | PathLike):
        raise UserError(f"{argument} is of type {type(value).__name__}; give a path or a name, as text or a Path")
    return os.fsdecode(value)


def open_model(name: str | PathLike[str], tokenizer: str | None = None) -> Source:
    """Open a run folder, a checkpoint, a model file of any known format, or a model of Hugging Face's hub.

    `tokenizer` names one to use instead of the model's own. Raises UserError where the name is none of these, or the
    file is damaged.
    """
    given_name = None if tokenizer is None else path_text("tokenizer", tokenizer)
    source = _open(os.path.expanduser(path_text("the model", name)))  # noqa: PTH111
    if given_name is None:
        return source
    given = named_tokenizer(given_name)
    if given.vocab_size > source.config.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer} has {given.vocab_size} ids, more than the {source.config.vocab_size} of "
            f"{source.origin}"
        )
    return replace(source, find_tokenizer=lambda: given)


def named_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer a user names: `gpt2`, `byte`, a tokenizer's file, a dataset's folder, or a model on disk.

    Raises UserError where the name is none of these.
    """
    reader = _reader(Path(name))
    is_other = reader is None or (reader is llmc.open_file and not llmc.is_model(Path(name)))
    return open_tokenizer(name) if is_other else _open(name).tokenizer


def _open(name: str) -> Source:
    path = Path(name)
    if path.name in ("model.safetensors", "pytorch_model.bin") and _is_huggingface(path.parent):
        path = path.parent  # its config.json holds more than the weights alone
    if (reader := _reader(path)) is not None:
        return reader(path)
    if huggingface.is_hub_name(name) and (not path.exists() or name in huggingface.OFFICIAL):
        return huggingface.open_hub(name)
    if (path / DESCRIPTION).is_file():
        raise UserError(f"{name} is a dataset and no model; name a model that was trained on it")
    if path.exists():
        inside = newest_model_in(path) if path.is_dir() else None
        hint = f"; it contains models, such as {inside}" if inside else ""
        if (path / ADAPTER).is_file():
            hint = f"; it holds a LoRA adapter: gpt2 serve MODEL --lora NAME={name}"
        raise UserError(f"{name} is no model: no {KINDS}{hint}")
    raise UserError(f"no model {name!r}: {did_you_mean(name, huggingface.OFFICIAL, f'no such {KINDS}')}")


def _reader(path: Path) -> Callable[[Path], Source] | None:
    """Return the function that opens a file or folder as a model; None where it is none."""
    if not path.is_file():
        return next((read for recognises, read in FOLDERS if recognises(path)), None)
    with path.open("rb") as file:
        start = file.read(64)
    return next((read for recognises, read in FILES if recognises(start, path.stat().st_size)), None)


def newest_model_in(folder: Path) -> Path | None:
    """Return the model in a folder whose name has the highest numbers, as trainers name checkpoints by steps."""
    found: list[Path] = []
    with suppress(OSError):
        found = [path for path in folder.iterdir() if is_model(path)]
    steps = {path: [int(number) for number in re.findall(r"\d{1,18}", path.name)] for path in found}
    return max(found, key=lambda path: (steps[path], path.name), default=None)


def is_model(path: Path) -> bool:
    """Return whether a path holds a model, by its name and its first bytes."""
    return (not path.is_file() or MODEL_FILE.fullmatch(path.name) is not None) and _reader(path) is not None


def build(source: Source, convert: Convert | None = None, **config_changes: Any) -> GPT:
    """Build the float32 model of an opened file.

    convert: is called with the name of each module and the module, as soon as its own parameters are read, and
    returns the module that takes its place. `config_changes` replace fields of the configuration that do not change
    shapes. Modules are read one at a time, so that memory holds the model and one more tensor; the embeddings, which
    are the largest, come first. Models built from the same source share nothing. All shapes are checked before
    anything is read; raises UserError where they do not fit the configuration, and where the file is damaged.
    """
    check_shapes(source)
    with torch.device("meta"):
        model = GPT(replace(source.config, **config_changes))
    for name in [name for name, _ in model.named_modules()]:  # modules that are replaced are not kept
        module = model.get_submodule(name)
        own = [key for key, _ in module.named_parameters(recurse=False)]
        for key in own:
            setattr(module, key, nn.Parameter(_read(source, f"{name}.{key}")))
        if own and convert is not None:
            model.set_submodule(name, convert(name, module))
    return model


def _read(source: Source, name: str) -> Tensor:
    """Return a tensor of a source in float32. Raises UserError."""
    try:
        stored = source.tensors[name]
        # A file may be mapped into memory, and a trainer may overwrite it at any time.
        return stored.read().to(torch.float32, copy=not stored.is_own)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights of {source.origin} cannot be read ({first_line(error)}); fetch them again"
        ) from None


def check_shapes(source: Source) -> None:
    """Raise UserError unless the tensors are exactly the parameters of the configuration."""
    known = set()
    for name, shape in parameter_shapes(
        source.config
    ):  # stops at the first that is missing, even if n_layer is absurd
        _check_shape(source, name, source.tensors.get(name), shape)
        known.add(name)
    for name in source.tensors.keys() - known:
        _check_shape(source, name, source.tensors[name], None)


def _check_shape(source: Source, name: str, tensor: StoredTensor | None, wanted: tuple[int, ...] | None) -> None:
    found = None if tensor is None else tensor.shape
    if found != wanted:
        raise UserError(
            f"the weights of {source.origin} do not fit its configuration: {name[:80]} is {found or 'missing'}, "
            + ("which GPT-2 does not have" if wanted is None else f"not {wanted}")
        )


def load(name: str | PathLike[str], tokenizer: str | None = None) -> tuple[GPT, Tokenizer]:
    """Load any model by path or name, ready to evaluate: `model, tokenizer = gpt2.load("out")`.

    `tokenizer` names one for a file that brings none. Raises UserError.
    """
    source = open_model(name, tokenizer)
    return build(source).eval(), source.tokenizer
