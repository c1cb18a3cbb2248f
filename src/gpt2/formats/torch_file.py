"""Files written by `torch.save`, read without executing anything in them."""

import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import UserError, first_line
from gpt2.formats.source import MASKS, StoredTensor


class PickledConfig:
    """Replaces the dataclass that build-nanogpt's script pickles into its checkpoints."""


def load(path: Path) -> Any:
    """Return the object in the file.

    Its tensors stay on the disk until they are used; only those of a file from before PyTorch 1.6, which cannot be
    mapped, are read into memory at once. Only tensors, plain values and build-nanogpt's configuration class are
    admitted. Raises UserError for anything else, by name and without executing it, and for damaged files.
    """
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _refuse_inflation(path)
        _refuse_bytearrays(path, is_zip)
        with torch.serialization.safe_globals([(PickledConfig, "__main__.GPTConfig")]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} asks to run {asked[1]}, which no model needs; nothing was run, do not trust this file"
            ) from None
        raise UserError(f"{path} is damaged, or no model saved by PyTorch ({first_line(error)})") from None
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise UserError(f"{path} is damaged ({first_line(error)}); fetch or save it again") from None


def save(values: object, path: Path) -> None:
    """Write a file that `load` reads. Raises OSError where the disk does not take it."""
    try:
        with path.open("wb") as file:
            torch.save(values, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer hides the system's error behind its own
            raise error.__context__ from None
        raise


def _refuse_inflation(path: Path) -> None:
    """Raise UserError where the file would unpack to more than its own size; `torch.save` does not compress."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise UserError(f"{path} unpacks to more bytes than it has; torch.save writes no such file")


def _refuse_bytearrays(path: Path, is_zip: bool) -> None:
    """Raise UserError where the pickle names `bytearray`: PyTorch admits it, and it can claim unlimited memory."""
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            found = any(b"bytearray" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = data.find(b"bytearray") >= 0
    if found:
        raise UserError(f"{path} asks to run builtins.bytearray, which no model needs; do not trust this file")


def state_dict(values: Any, where: object) -> list[tuple[str, StoredTensor]]:
    """Return the tensors of a state dict with their names. Raises UserError where `values` is not a state dict."""
    if not isinstance(values, Mapping) or not values:
        raise UserError(f"{where} holds no weights")
    for name, tensor in values.items():
        if not isinstance(name, str) or not (name.endswith(MASKS) or is_dense(tensor)):
            raise UserError(f"{where} holds {str(name)[:80]!r}, which is no tensor of weights")
    return [(name, StoredTensor.of(tensor)) for name, tensor in values.items() if not name.endswith(MASKS)]


def is_dense(tensor: object) -> bool:
    """Return whether the object is a dense floating-point tensor whose elements are all in the file."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )
