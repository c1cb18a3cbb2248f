"""Writes token files: nanoGPT's and llm.c's `.bin` and NumPy's `.npy`, in shards, with restarts."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gpt2.data.shards import HEADER_BYTES, LLMC_TOKENS
from gpt2.errors import UserError
from gpt2.files import flush, sha256, writing

MAX_LLMC_TOKENS = (1 << 31) - 1
"""Largest number of tokens in one file of llm.c, whose header counts in int32."""


@dataclass(frozen=True)
class Format:
    """Describes the token files of another project."""

    suffix: str
    header: Callable[[int, str], bytes]
    """Returns the header for a number of tokens and a dtype. Its length is constant."""
    eot_first: bool
    """Whether end-of-text comes before each document and not after it."""
    shard_size: int
    """Default number of tokens per file; 0 means one file per split."""


def _llmc_header(tokens: int, dtype: str) -> bytes:
    magic, version = next(key for key, value in LLMC_TOKENS.items() if value == dtype)
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = magic, version, tokens
    return header.tobytes()


def _npy_header(tokens: int, dtype: str) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": (tokens,)})
    return header.getvalue()


FORMATS = {
    "nanogpt": Format(".bin", lambda tokens, dtype: b"", eot_first=False, shard_size=0),
    "llmc": Format(".bin", _llmc_header, eot_first=True, shard_size=100_000_000),
    "npy": Format(".npy", _npy_header, eot_first=True, shard_size=100_000_000),
}


@dataclass(frozen=True)
class Layout:
    """Describes the files of a dataset."""

    format: str
    name: str
    """Beginning of the file names of llm.c and build-nanogpt."""
    shard_size: int
    """Number of tokens per file; 0 means one file per split."""
    dtype: str
    """NumPy's name of the dtype of a token."""

    def file_name(self, split: str, number: int) -> str:
        """Return the name that the project of this format gives the file."""
        suffix = FORMATS[self.format].suffix
        if self.format == "nanogpt":
            return f"{split}{suffix}"
        return f"{self.name}_{split}_{number:06d}{suffix}" if self.shard_size else f"{self.name}_{split}{suffix}"


def first_number(val_tokens: int, layout: Layout) -> int:
    """Return the number of the first training file, which follows the files of the first tokens for validation."""
    return -(-val_tokens // layout.shard_size) if layout.shard_size else 0


@dataclass(frozen=True)
class Written:
    """Describes a finished file."""

    name: str
    tokens: int
    sha256: str


class SplitWriter:
    """Writes the tokens of one split to its files in `folder`."""

    def __init__(self, folder: Path, layout: Layout, split: str, first_number: int = 0) -> None:
        self.folder = folder
        self.layout = layout
        self.split = split
        self.first_number = first_number
        self.header = FORMATS[layout.format].header
        self.written: list[Written] = []
        self.open_tokens = 0
        """Number of tokens in the file being written."""
        self._file: IO[bytes] | None = None

    @property
    def tokens(self) -> int:
        """Return the number of tokens in all files so far."""
        return sum(w.tokens for w in self.written) + self.open_tokens

    def append(self, tokens: np.ndarray) -> bool:
        """Write ids of any integer dtype, (tokens,); return whether a file became full. Raises UserError."""
        finished = False
        size = self.layout.shard_size
        while len(tokens):
            space = size - self.open_tokens if size else len(tokens)
            self._write(tokens[:space])
            if size and self.open_tokens == size:
                self.finish()
                finished = True
            tokens = tokens[space:]
        return finished

    def _write(self, tokens: np.ndarray) -> None:
        if self.layout.format == "llmc" and self.open_tokens + len(tokens) > MAX_LLMC_TOKENS:
            raise UserError(
                f"llm.c's header counts at most {MAX_LLMC_TOKENS:,} tokens per file, and {self._path().name} "
                "has more; give --shard_size=100000000"
            )
        with writing(self._path()):
            if self._file is None:
                self._file = self._path().open("wb")
                self._file.write(self.header(0, self.layout.dtype))
            self._file.write(tokens.astype(self.layout.dtype, copy=False).tobytes())
        self.open_tokens += len(tokens)

    def _path(self) -> Path:
        return self.folder / self.layout.file_name(self.split, self.first_number + len(self.written))

    def finish(self) -> None:
        """Complete the file being written, if there is one."""
        if self._file is None:
            return
        with writing(self._path()):
            self._file.seek(0)
            self._file.write(self.header(self.open_tokens, self.layout.dtype))
            self._file.flush()
            flush(self._file.fileno())
        self.abandon()
        self.written.append(Written(self._path().name, self.open_tokens, sha256(self._path())))
        self.open_tokens = 0

    def state(self) -> dict[str, Any]:
        """Return as JSON how far writing has come, after flushing to the disk, and the least size of each file."""
        if self._file is not None:
            with writing(self._path()):
                self._file.flush()
                flush(self._file.fileno())
        files = {w.name: self._bytes(w.tokens) for w in self.written}
        if self.open_tokens:
            files[self._path().name] = self._bytes(self.open_tokens)
        return {"written": [asdict(w) for w in self.written], "open_tokens": self.open_tokens, "files": files}

    def _bytes(self, tokens: int) -> int:
        return len(self.header(0, self.layout.dtype)) + tokens * np.dtype(self.layout.dtype).itemsize

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`; everything that was written after it is removed."""
        self.written = [Written(**w) for w in state["written"]]
        self.open_tokens = state["open_tokens"]
        if self.open_tokens:
            with writing(self._path()):
                self._file = self._path().open("r+b")
                self._file.truncate(self._bytes(self.open_tokens))
                self._file.seek(0, os.SEEK_END)

    def abandon(self) -> None:
        """Close the file being written without completing it."""
        if self._file is not None:
            with suppress(OSError):  # from bytes that the disk does not take
                self._file.close()
            self._file = None
