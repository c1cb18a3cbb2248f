"""Token files on disk, memory-mapped."""

from pathlib import Path

import numpy as np

from gpt2.errors import UserError

Tokens = np.ndarray
"""One split: a 1-D array of token ids, memory-mapped."""

LLMC_MAGICS = (20240520, 20240801)
MAX_CHECKED_TOKENS = 1 << 25


def open_bin(path: Path) -> Tokens:
    """Map nanoGPT's `.bin`: bare little-endian uint16, no header.

    Raises UserError for a file that is missing, empty, of odd length or of another format.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the dataset again with gpt2 prepare")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty; prepare the dataset again with gpt2 prepare")
    if size % 2:
        raise UserError(f"{path} has an odd number of bytes ({size}), so it is truncated or not uint16 tokens")
    tokens = np.memmap(path, dtype="<u2", mode="r")
    if size >= 1024 and int(tokens[:2].view("<i4")[0]) in LLMC_MAGICS:
        raise UserError(f"{path} is an llm.c shard with a header; a nanoGPT .bin holds bare tokens")
    return tokens


def check_ids(tokens: Tokens, vocab_size: int, path: Path) -> None:
    """Raise UserError where an id is not below `vocab_size`.

    Looks at evenly spread stretches of at most 32M tokens in all, so that the time is bounded.
    """
    stretches = [tokens]
    if len(tokens) > MAX_CHECKED_TOKENS:
        starts = np.linspace(0, len(tokens) - MAX_CHECKED_TOKENS // 256, 256).astype(np.int64)
        stretches = [tokens[s : s + MAX_CHECKED_TOKENS // 256] for s in starts]
    largest = max(int(s.max()) for s in stretches)
    if largest >= vocab_size:
        raise UserError(
            f"{path} holds token id {largest}, but the vocabulary has {vocab_size} ids; "
            "the data was made with another tokenizer: prepare it again"
        )
