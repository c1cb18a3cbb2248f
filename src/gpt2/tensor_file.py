"""A safetensors file that several processes write together, each the rows it has.

Where every byte goes follows from the names, types and shapes of the tensors alone, so that all processes know it
before one writes, and the file is the same however many they are. Format: https://github.com/huggingface/safetensors
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
}
ITEM_SIZES = {name: dtype.itemsize for dtype, name in DTYPES.items()}
PIECE = 1 << 26
"""Most bytes given to the system at a time."""


@dataclass(frozen=True)
class Part:
    """The rows of a tensor that this process has: all, unless others have the rest."""

    rows: Tensor
    """On any device; the first dimension is the tensor's, or less of it."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first: int = 0
    """Which of its rows is the first one here."""

    @property
    def is_whole(self) -> bool:
        """Whether these are all the rows there are."""
        return tuple(self.rows.shape) == self.shape


Kinds = Mapping[str, tuple[str, tuple[int, ...]]]
"""What a file holds: type and shape of each tensor by name."""


def kinds(parts: Mapping[str, Part]) -> Kinds:
    """The types and shapes of the tensors of which there are parts here."""
    return {name: (DTYPES[part.rows.dtype], part.shape) for name, part in parts.items()}


class Layout:
    """Where in a file every tensor lies."""

    def __init__(self, tensors: Kinds, metadata: Mapping[str, str] | None = None) -> None:
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        begins, begin = {}, 0
        for name, (dtype, shape) in sorted(tensors.items()):
            begins[name], end = begin, begin + ITEM_SIZES[dtype] * math.prod(shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
            begin = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        self.head = len(text).to_bytes(8, "little") + text
        self.begins = {name: len(self.head) + begin for name, begin in begins.items()}
        """Byte of the file at which a tensor begins."""
        self.size = len(self.head) + begin
        """Bytes of the whole file."""

    def create(self, path: Path) -> None:
        """Make the file, with room for the tensors and without them."""
        with path.open("wb") as file:
            file.write(self.head)
            file.truncate(self.size)

    def write(self, path: Path, parts: Mapping[str, Part]) -> None:
        """Put parts of tensors into a file that was created, and onto the disk. Raises OSError."""
        fd = os.open(path, os.O_WRONLY)
        try:
            for name, part in parts.items():
                data = memoryview(_bytes(part.rows))
                row = len(data) // len(part.rows) if part.shape and len(part.rows) else 0
                _write_all(fd, data, self.begins[name] + part.first * row)
            os.fsync(fd)
        finally:
            os.close(fd)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of whole tensors, on any device and of the types in DTYPES. Raises OSError."""
    parts = {name: Part(tensor, tuple(tensor.shape)) for name, tensor in tensors.items()}
    layout = Layout(kinds(parts), metadata)
    layout.create(path)
    layout.write(path, parts)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data[:PIECE], offset)
        data, offset = data[written:], offset + written
