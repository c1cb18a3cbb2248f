"""Token files on disk: nanoGPT's and llm.c's `.bin` and NumPy's `.npy`, told by what is in them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from gpt2.errors import UserError, first_line

HEADER_BYTES = 1024
LLMC_TOKENS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""Magic number and version of llm.c's shards, for GPT-2's tokens and for Llama 3's, and what a token is there."""
LLMC_MAGICS = {magic for magic, _ in LLMC_TOKENS} | {20240326, 20240327, 20240328, 20240522}
NPY_MAGIC = b"\x93NUMPY"
NPY_DTYPES = ("<u2", "<u4", "<i4")
MAX_CHECKED_TOKENS = 1 << 25
CHECKED_STRETCHES = 256


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    path: Path
    kind: str
    """Whose format it is: nanogpt, llmc or npy."""
    dtype: str
    """NumPy's name of what a token is."""
    offset: int
    """Bytes before the first token."""
    count: int
    """Tokens."""

    @property
    def is_llama3(self) -> bool:
        """Whether its header says Llama 3's tokens, as far as nothing beside it says otherwise."""
        return self.kind == "llmc" and self.dtype == "<u4"

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens from `start` up to `stop`. Raises UserError where the file has become shorter.

        Reads and does not map, so that memory stays flat over a long run.
        """
        size = np.dtype(self.dtype).itemsize
        tokens = np.fromfile(self.path, self.dtype, count=stop - start, offset=self.offset + start * size)
        if len(tokens) < stop - start:
            raise UserError(f"{self.path} is shorter than when it was opened; prepare the dataset again")
        return tokens


class Tokens:
    """The tokens of one split: shards one after the other, sliced as one long array."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.lengths = [shard.count for shard in shards]
        self.ends = np.cumsum(self.lengths)
        """Where each shard ends, counted from the first token of all."""
        self.vocab_size: int | None = None
        """What every id that is read must lie below, once `check_ids` has set it."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: slice) -> np.ndarray:
        """The tokens of a slice without a step, which may lie in several shards.

        Raises UserError for a file that has changed since it was opened: it is shorter, or holds ids that are not
        below `vocab_size`, for which a GPU could only fail for good.
        """
        start, stop, step = where.indices(len(self))
        assert step == 1, "tokens are read in their order"
        parts: list[np.ndarray] = []
        number = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            shard, end = self.shards[number], int(self.ends[number])
            first = end - shard.count
            ids = shard.read(start - first, min(stop, end) - first)
            if self.vocab_size is not None:
                require_below(ids, self.vocab_size, shard.path)
            parts.append(ids)
            start, number = end, number + 1
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, "<u2"), *parts])


def open_shard(path: Path) -> Shard:
    """Find out what a file holds, from its first bytes and its size.

    Raises UserError for one that is missing, empty, truncated or holds no tokens.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; prepare the dataset again with gpt2 prepare") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable, or prepare it again") from None
    if not start:
        raise UserError(f"{path} is empty; prepare the dataset again with gpt2 prepare")
    if start.startswith(NPY_MAGIC):
        return _npy(path, size)
    if len(start) == HEADER_BYTES and int.from_bytes(start[:4], "little") in LLMC_MAGICS:
        return _llmc(path, size, np.frombuffer(start[:12], dtype="<i4").tolist())
    if size % 2:
        raise UserError(f"{path} has an odd number of bytes ({size}), so it is truncated or not uint16 tokens")
    return Shard(path, "nanogpt", "<u2", 0, size // 2)


def _llmc(path: Path, size: int, header: list[int]) -> Shard:
    magic, version, count = header
    if (dtype := LLMC_TOKENS.get((magic, version))) is None:
        raise UserError(
            f"{path} is a file of llm.c's with magic {magic} and version {version}, which holds no tokens"
        )
    expected = HEADER_BYTES + count * np.dtype(dtype).itemsize
    if size != expected or not count:
        raise UserError(
            f"{path} has {size} bytes where its header says {count} tokens; it is damaged: write it again"
        )
    return Shard(path, "llmc", dtype, HEADER_BYTES, count)


def _npy(path: Path, size: int) -> Shard:
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            offset = file.tell()
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is a damaged .npy ({first_line(error)}); write it again") from None
    if len(shape) != 1 or not shape[0] or dtype.str not in NPY_DTYPES:
        raise UserError(f"{path} holds {dtype} of shape {shape}; tokens are one row of uint16, uint32 or int32")
    if size != offset + shape[0] * dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes where its header says {shape[0]} tokens; it is damaged: write it again"
        )
    return Shard(path, "npy", dtype.str, offset, shape[0])


def check_ids(tokens: Tokens, vocab_size: int) -> str:
    """See that all ids are below `vocab_size`, now and whenever tokens are read; returns a fingerprint of the ids.

    Looks at evenly spread stretches of at most 32M tokens in all, so that the time is bounded; the fingerprint is the
    SHA-256 of these and the length, in hexadecimal. Raises UserError for a larger or negative id.
    """
    tokens.vocab_size = vocab_size
    length = len(tokens)
    found = hashlib.sha256(str(length).encode())
    stretch = -(-min(length, MAX_CHECKED_TOKENS) // CHECKED_STRETCHES)
    for start in np.linspace(0, length - stretch, CHECKED_STRETCHES).astype(np.int64).tolist():
        found.update(tokens[start : start + stretch].astype("<u4").tobytes())
    return found.hexdigest()


def require_below(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    """Raise UserError where one of the `ids` of the file `path` is not in a vocabulary of `vocab_size` ids."""
    if len(ids) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        raise UserError(
            f"{path} holds token id {wrong[0]}, but the vocabulary has {vocab_size} ids; the data was made with "
            "another tokenizer, or has changed: prepare it again"
        )
