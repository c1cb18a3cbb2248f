"""A safetensors file that several processes write together, each its own shards.

The position of every byte follows from the names, dtypes and shapes of the tensors alone. All processes therefore
know it before any of them writes, and the file does not depend on the number of processes. It is written by hand
because `safetensors.torch.save_file` needs all tensors in one process, and `torch.distributed.checkpoint` writes
files of its own for every process. File format: https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2 import system
from gpt2.files import flush

DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
}
ITEM_SIZES = {name: dtype.itemsize for dtype, name in DTYPES.items()}
PIECE = 1 << 26
"""Largest number of bytes passed to the system in one write."""


@dataclass(frozen=True)
class TensorShard:
    """A shard is the consecutive rows of a tensor that this process holds; without sharding, the full tensor."""

    values: Tensor
    """Values of the shard, on any device: (rows of the shard, …), or () for a scalar."""
    shape: tuple[int, ...]
    """Shape of the full tensor."""
    first_row: int = 0
    """Index in the full tensor of the first row of the shard."""
    is_copy: bool = False
    """Whether a process of lower rank has the same rows."""

    @property
    def is_full(self) -> bool:
        """Return whether the shard is the full tensor."""
        return tuple(self.values.shape) == self.shape


TensorSpecs = Mapping[str, tuple[str, tuple[int, ...]]]
"""Content of a file: safetensors' name of the dtype, and the full shape, of each tensor by name."""


def specs_of(shards: Mapping[str, TensorShard]) -> TensorSpecs:
    """Return the dtypes and full shapes of the tensors to which the shards belong."""
    return {name: (DTYPES[shard.values.dtype], shard.shape) for name, shard in shards.items()}


class Layout:
    """Holds the position of every tensor in a file."""

    def __init__(self, tensors: TensorSpecs, metadata: Mapping[str, str] | None = None) -> None:
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
        """Offset in bytes at which each tensor begins."""
        self.size = len(self.head) + begin
        """Size of the complete file in bytes."""

    def create(self, path: Path) -> None:
        """Create the file with its header, and with space for the tensors. Raises OSError."""
        with path.open("wb") as file:
            file.write(self.head)
            file.truncate(self.size)

    def write(self, path: Path, shards: Mapping[str, TensorShard]) -> None:
        """Write shards into a file that `create` made, and flush them to the disk. Raises OSError."""
        with path.open("r+b", buffering=0) as file:
            for name, shard in shards.items():
                data = memoryview(_bytes(shard.values))
                row_size = len(data) // len(shard.values) if shard.shape and len(shard.values) else 0
                _write_all(file.fileno(), data, self.begins[name] + shard.first_row * row_size)
            flush(file.fileno())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of full tensors, on any device and of the dtypes in DTYPES. Raises OSError."""
    shards = {name: TensorShard(tensor, tuple(tensor.shape)) for name, tensor in tensors.items()}
    layout = Layout(specs_of(shards), metadata)
    layout.create(path)
    layout.write(path, shards)


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = system.write_at(fd, data[:PIECE], offset)
        data, offset = data[written:], offset + written
