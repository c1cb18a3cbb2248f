"""Finds the passages of a text that occur in the training data word for word, token by token."""

from dataclasses import dataclass

import numpy as np

from gpt2.data.shards import Tokens
from gpt2.errors import require
from gpt2.inside.forward import Progress, no_progress

PIECE = 1 << 20
"""Number of training tokens that are searched at a time, by which the memory is bounded."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd factor of the hash of an n-gram, 2^64 divided by the golden ratio."""
TABLE_BITS = 20
"""A table of 2^20 entries says for the first bits of a hash whether an n-gram of the text may have it."""


@dataclass(frozen=True)
class Matches:
    """Matches hold, for each of T tokens of a text, the longest n-gram ending there that is in other tokens."""

    lengths: np.ndarray
    """Number of tokens of that n-gram, int64 (T,); 0 where it is shorter than the shortest one looked for."""
    offsets: np.ndarray
    """Offset of its first token where it occurs first, int64 (T,); -1 where there is none."""

    def passages(self, most: int) -> list[tuple[int, int, int]]:
        """Return at most `most` passages that do not overlap, the longest first: (position, length, offset) each."""
        found: list[tuple[int, int, int]] = []
        is_taken = np.zeros(len(self.lengths), dtype=bool)
        for end in np.argsort(-self.lengths, kind="stable").tolist():
            length = int(self.lengths[end])
            if length == 0 or len(found) == most:
                break
            start = end + 1 - length
            if not is_taken[start : end + 1].any():
                is_taken[start : end + 1] = True
                found.append((start, length, int(self.offsets[end])))
        return found


def longest_matches(
    ids: np.ndarray, tokens: Tokens, shortest: int = 4, piece: int = PIECE, progress: Progress = no_progress
) -> Matches:
    """Return the longest n-gram ending at each token of a text that occurs in a split's tokens, and where.

    ids: the text, integers (T,). shortest: the least length n that counts; of a shorter one there is too much by
    chance. piece: number of tokens in memory. progress: receives the number of tokens searched and all of them.

    The n-grams of length `shortest` are looked up by a hash, and compared. Two that follow each other in the text and
    in the tokens make a longer one, so that the length at a token is one more than at the token before it.
    """
    require(shortest >= 1, f"shortest is {shortest}; it must be at least 1")
    found = Matches(np.zeros(len(ids), dtype=np.int64), np.full(len(ids), -1, dtype=np.int64))
    text = ids.astype(np.int64)
    if len(text) < shortest:
        return found
    windows = np.lib.stride_tricks.sliding_window_view(text, shortest)
    grams, gram_of = np.unique(windows, axis=0, return_inverse=True)  # (G, n) and (T - n + 1,)
    for start in range(0, len(tokens), piece):
        first = max(0, start - len(text) + 1)  # so that a passage lies inside a piece
        part = tokens[first : start + piece].astype(np.int64)
        _search(part, first, grams, gram_of.reshape(-1), found)
        progress(min(start + piece, len(tokens)), len(tokens))
    return found


def _hashes(rows: np.ndarray, n: int) -> np.ndarray:
    """Return a hash of the n-gram that begins at each token, uint64 (N - n + 1,) for int64 (N,)."""
    count = len(rows) - n + 1
    found = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        found = (found + rows[i : i + count].astype(np.uint64) + np.uint64(1)) * MULTIPLIER
        found ^= found >> np.uint64(29)
    return found


def _occurrences(part: np.ndarray, grams: np.ndarray) -> list[np.ndarray]:
    """Return the offsets in `part`, in ascending order, at which each of the n-grams (G, n) begins."""
    n = grams.shape[1]
    if len(part) < n:
        return [np.empty(0, dtype=np.int64)] * len(grams)
    wanted = np.array([_hashes(gram, n)[0] for gram in grams])
    order = np.argsort(wanted)
    shift = np.uint64(64 - TABLE_BITS)
    table = np.zeros(1 << TABLE_BITS, dtype=bool)
    table[wanted >> shift] = True
    hashes = _hashes(part, n)
    offsets = np.flatnonzero(table[hashes >> shift])
    number = order[np.searchsorted(wanted[order], hashes[offsets]).clip(max=len(grams) - 1)]
    is_equal = np.ones(len(offsets), dtype=bool)
    for i in range(n):
        is_equal &= part[offsets + i] == grams[number, i]
    offsets, number = offsets[is_equal], number[is_equal]
    by_number = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[by_number], np.arange(1, len(grams)))
    return np.split(offsets[by_number], ends)


def _search(part: np.ndarray, first: int, grams: np.ndarray, gram_of: np.ndarray, found: Matches) -> None:
    """Search a piece of tokens, whose first one has the offset `first`, and record longer n-grams in `found`."""
    n = grams.shape[1]
    occurrences = _occurrences(part, grams)
    before, lengths_before = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for position, number in enumerate(gram_of.tolist()):
        begins = occurrences[number]
        lengths = np.full(len(begins), n, dtype=np.int64)
        if len(before) and len(begins):
            at = np.searchsorted(before, begins - 1).clip(max=len(before) - 1)
            lengths = np.where(before[at] == begins - 1, lengths_before[at] + 1, lengths)
        if len(begins):
            best = int(lengths.argmax())
            length, end = int(lengths[best]), position + n - 1
            if length > found.lengths[end]:
                found.lengths[end] = length
                found.offsets[end] = first + begins[best] + n - length
        before, lengths_before = begins, lengths
