"""The GGUF container (version 3): typed metadata, then tensors. Specification: ggml-org/ggml, docs/gguf.md.

The reader is written by hand because the one in llama.cpp's package `gguf` loops on absurd lengths, which damaged
files have; here every length is checked against the file first. The writer has 50 lines and saves users that package.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_DIMENSIONS = 4
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Type numbers of metadata, and NumPy's names for these types."""
UINT32, INT32, FLOAT32 = 4, 5, 6


@dataclass(frozen=True)
class TensorInfo:
    """Describes a tensor in the file."""

    name: str
    shape: tuple[int, ...]
    """Shape with the outermost dimension first, as in PyTorch; the file has the reverse order."""
    kind: int
    """ggml's number of the dtype."""
    offset: int
    """Offset from the start of the file, in bytes."""


def read_header(path: Path) -> tuple[dict[str, Any], list[TensorInfo]]:
    """Return the metadata, and the tensors with their offsets.

    Strings are returned as bytes, arrays as lists of bytes or NumPy arrays. Every length is checked against the size
    of the file before memory is reserved for it. Raises ValueError for a damaged file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(data).header()


class _Reader:
    """Reads a header from front to back; no length may exceed the bytes that are left."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"it ends at byte {len(self.data)}, in the middle of its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> bytes:
        return self.take(self.integer(8))

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])[0].item()
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth > MAX_DIMENSIONS:
            raise ValueError(f"metadata of type {kind}")
        kind, count = self.integer(4), self.integer(8)
        if kind in SCALARS:
            return np.frombuffer(self.take(count * np.dtype(SCALARS[kind]).itemsize), SCALARS[kind])
        self.check_fits(count, 8)
        return [self.value(kind, depth + 1) for _ in range(count)]

    def check_fits(self, count: int, size: int) -> None:
        """Raise ValueError where the rest of the file cannot hold `count` entries of at least `size` bytes."""
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it announces {count} entries where {len(self.data) - self.at} bytes are left")

    def header(self) -> tuple[dict[str, Any], list[TensorInfo]]:
        if self.take(4) != MAGIC or self.integer(4) not in VERSIONS:
            raise ValueError("it is no GGUF of version 2 or 3")
        tensors, pairs = self.integer(8), self.integer(8)
        self.check_fits(pairs, 13)
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string().decode()
            metadata[key] = self.value(self.integer(4))
        self.check_fits(tensors, 24)
        entries = [self.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise ValueError(f"an alignment of {alignment!r}")
        start = -(-self.at // alignment) * alignment
        return metadata, [TensorInfo(name, shape, kind, start + offset) for name, shape, kind, offset in entries]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string().decode(), self.integer(4)
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(self.integer(8) for _ in range(dimensions))[::-1]
        return name, shape, self.integer(4), self.integer(8)


@dataclass(frozen=True)
class TensorToWrite:
    """Describes a tensor to be written."""

    name: str
    shape: tuple[int, ...]
    kind: int
    """ggml's number of the dtype."""
    size: int
    """Size in bytes."""
    write: Callable[[BinaryIO], None]
    """Writes these bytes to a file."""


def write(path: Path, metadata: dict[str, Any], tensors: list[TensorToWrite]) -> None:
    """Write a file of version 3, calling for one tensor at a time.

    A value of the metadata may be a bool, an int (written as uint32), a float (as float32), a str, a list of str or
    bytes, or a list of int (as int32).
    """
    infos, offset = b"", 0
    for t in tensors:
        infos += _string(t.name) + struct.pack(f"<I{len(t.shape)}QIQ", len(t.shape), *t.shape[::-1], t.kind, offset)
        offset += t.size + -t.size % ALIGNMENT
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata)))
        file.write(b"".join(_string(key) + _typed(value) for key, value in metadata.items()) + infos)
        _align(file)
        for t in tensors:
            start = file.tell()
            t.write(file)
            assert file.tell() - start == t.size, t.name
            _align(file)


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """Return the bytes of a metadata value, preceded by its type."""
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case list() if value and isinstance(value[0], int):
            return struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)
        case list():
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    raise AssertionError(f"metadata of type {type(value)}")
