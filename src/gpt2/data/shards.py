"""Token files on disk: nanoGPT's and llm.c's `.bin` and NumPy's `.npy`, recognised by their content."""

import hashlib
import io
import shlex
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from gpt2.errors import UserError, first_line
from gpt2.spelling import counted

HEADER_BYTES = 1024
NPY_HEADER_BYTES = 1 << 14
"""Bytes in which the header of a .npy of tokens ends."""
TEXT_BYTES, LEAST_TEXT = 256, 32
"""Bytes of a file by which text is recognised, at most and at least."""
LLMC_TOKENS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""Dtype of a token by magic number and version of llm.c's shards, for GPT-2's tokens and for Llama 3's."""
LLMC_MAGICS = {magic for magic, _ in LLMC_TOKENS} | {20240326, 20240327, 20240328, 20240522}
NPY_MAGIC = b"\x93NUMPY"
NPY_DTYPES = ("<u2", "<u4", "<i4")
MAX_HASHED_TOKENS = 1 << 25
HASHED_CHUNKS = 256


@dataclass(frozen=True)
class Shard:
    """A shard is one file of tokens."""

    path: Path
    kind: str
    """Format of the file: nanogpt, llmc or npy."""
    dtype: str
    """NumPy's name of the dtype of a token."""
    offset: int
    """Number of bytes before the first token."""
    count: int
    """Number of tokens in the file."""

    @property
    def is_llama3(self) -> bool:
        """Return whether the header announces tokens of Llama 3. A dataset.json next to the file overrides it."""
        return self.kind == "llmc" and self.dtype == "<u4"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the tokens from `start` up to `stop`, (stop - start,), in the dtype of the file.

        The file is read and not mapped, so that memory does not grow over a long run. Raises UserError where the file
        has become shorter.
        """
        size = np.dtype(self.dtype).itemsize
        tokens = np.fromfile(self.path, self.dtype, count=stop - start, offset=self.offset + start * size)
        if len(tokens) < stop - start:
            raise UserError(f"{self.path} is shorter than when it was opened; prepare the dataset again")
        return tokens


class Tokens:
    """Holds the tokens of one split: its shards in order, which can be sliced as one long array."""

    def __init__(self, shards: Sequence[Shard], vocab_size: int | None = None) -> None:
        """vocab_size: number of ids of the vocabulary, by which every read is checked; None checks nothing."""
        self.shards, self.vocab_size = shards, vocab_size
        self.lengths = [shard.count for shard in shards]
        self.ends = np.cumsum(self.lengths)
        """Offset at which each shard ends, counted over all shards: int64 (shards,)."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, where: slice) -> np.ndarray:
        """Return the tokens of a slice without a step, which may extend over several shards: (stop - start,).

        Raises UserError for a file that has changed since it was opened: it is shorter, or holds ids that are not
        below `vocab_size`, with which a GPU would fail irrecoverably.
        """
        start, stop, step = where.indices(len(self))
        assert step == 1, "tokens are read in their order"
        pieces: list[np.ndarray] = []
        number = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            shard, end = self.shards[number], int(self.ends[number])
            first = end - shard.count
            ids = shard.read(start - first, min(stop, end) - first)
            if self.vocab_size is not None:
                require_below(ids, self.vocab_size, shard.path)
            pieces.append(ids)
            start, number = end, number + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, "<u2"), *pieces])


def open_shard(path: Path) -> Shard:
    """Open a token file, whose format is recognised by its first bytes and its size.

    Raises UserError where it is missing, empty or truncated, or holds no tokens.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):  # a pipe would never be opened
            raise UserError(f"{path} is not a file; prepare the dataset again with gpt2 prepare")
        with path.open("rb") as file:
            start, size = file.read(NPY_HEADER_BYTES), about.st_size
    except FileNotFoundError:
        raise UserError(f"{path} is missing; prepare the dataset again with gpt2 prepare") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable, or prepare it again") from None
    if not start:
        raise UserError(f"{path} is empty; prepare the dataset again with gpt2 prepare")
    if start.startswith(NPY_MAGIC):
        return _npy(path, size, start)
    if len(start) >= HEADER_BYTES and int.from_bytes(start[:4], "little") in LLMC_MAGICS:
        return _llmc(path, size, np.frombuffer(start[:12], dtype="<i4").tolist())
    if _is_text(start):
        raise UserError(
            f"{path} is text, and a dataset holds token ids; prepare it: gpt2 prepare {shlex.quote(str(path))} "
            "--out=FOLDER"
        )
    if size % 2:
        raise UserError(f"{path} has an odd number of bytes ({size}), so it is truncated or not uint16 tokens")
    return Shard(path, "nanogpt", "<u2", 0, size // 2)


def _is_text(start: bytes) -> bool:
    """Return whether the first bytes of a file are text; as numbers of 16 bits, token ids look otherwise."""
    start = start[:TEXT_BYTES]
    if len(start) < LEAST_TEXT or any(byte < 32 and byte not in b"\t\n\r\f" for byte in start):
        return False
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # the last character is cut
    return True


def _llmc(path: Path, size: int, header: list[int]) -> Shard:
    magic, version, count = header
    if (dtype := LLMC_TOKENS.get((magic, version))) is None:
        raise UserError(f"{path} is a file of llm.c with magic {magic} and version {version}, which holds no tokens")
    expected = HEADER_BYTES + count * np.dtype(dtype).itemsize
    if size != expected or not count:
        raise UserError(
            f"{path} has {size} bytes where its header says {counted(count, 'token')}; it is damaged: write it again"
        )
    return Shard(path, "llmc", dtype, HEADER_BYTES, count)


def _npy(path: Path, size: int, start: bytes) -> Shard:
    """Open a .npy file of `size` bytes that begins with `start`. Raises UserError."""
    file = io.BytesIO(start)  # a damaged length of the header must not have the complete file read
    try:
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
        content = f"{dtype} of shape {shape}"  # fails for a number of thousands of digits
    except Exception as error:  # NumPy evaluates the header as Python, and raises whatever that raises
        raise UserError(f"{path} is a damaged .npy ({first_line(error)}); write it again") from None
    offset = file.tell()
    if len(shape) != 1 or shape[0] < 1 or dtype.str not in NPY_DTYPES:
        raise UserError(f"{path} holds {content[:80]}; tokens are one row of uint16, uint32 or int32")
    if size != offset + shape[0] * dtype.itemsize:
        raise UserError(
            f"{path} has {size} bytes where its header says {counted(shape[0], 'token')}; it is damaged: "
            "write it again"
        )
    return Shard(path, "npy", dtype.str, offset, shape[0])


def content_hash(tokens: Tokens) -> str:
    """Return the SHA-256, in hexadecimal, of the number of tokens and of evenly spread chunks of them.

    The chunks have at most 32M tokens in all, which bounds the time. Raises UserError where reading them does.
    """
    length = len(tokens)
    found = hashlib.sha256(str(length).encode())
    chunk = -(-min(length, MAX_HASHED_TOKENS) // HASHED_CHUNKS)
    for start in np.linspace(0, length - chunk, HASHED_CHUNKS).astype(np.int64).tolist():
        found.update(tokens[start : start + chunk].astype("<u4").tobytes())
    return found.hexdigest()


def require_below(ids: np.ndarray, vocab_size: int, path: Path) -> None:
    """Raise UserError where one of the `ids` of the file `path` is not in a vocabulary of `vocab_size` ids."""
    if len(ids) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
        wrong = ids[(ids < 0) | (ids >= vocab_size)]
        raise UserError(
            f"{path} holds token id {wrong[0]}, but the vocabulary has {vocab_size} ids; the data was made with "
            "another tokenizer, or has changed: prepare it again"
        )
