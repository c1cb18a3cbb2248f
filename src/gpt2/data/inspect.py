"""Statistics of a dataset, counted over its tokens in chunks of bounded size."""

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt2.data.dataset import Dataset
from gpt2.data.shards import Tokens
from gpt2.tokenizers import Tokenizer

STRETCH = 1 << 20
"""Number of tokens per chunk."""
BLOCK = 64
"""Number of tokens per block; blocks are compared where no end-of-text token separates documents."""
EXCERPTS = 10
EXCERPT_TOKENS = 48
QUANTILES = {"shortest": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "longest": 1.0}


@dataclass(frozen=True)
class SplitReport:
    """Describes one split."""

    formats: list[str]
    """Formats and dtypes of its files, such as `nanogpt uint16`."""
    files: int
    tokens: int
    documents: int | None
    """Number of documents between end-of-text tokens; None where there is no such token."""
    tokens_per_document: dict[str, float]
    """Shortest, longest and mean number of tokens, and quantiles."""
    eot_rate: float
    """Share of end-of-text tokens among all tokens."""
    largest_id: int
    unused_ids: int
    """Number of ids of the tokenizer that never occur."""
    duplicates: int
    """Number of documents that occurred before in this split; without end-of-text tokens, of blocks of 64 tokens."""
    excerpts: list[str]
    lengths: np.ndarray = field(repr=False)
    """Number of tokens of each document, int64 (documents,)."""
    counts: np.ndarray = field(repr=False)
    """Number of occurrences of each id, int64 (vocab_size,)."""
    hashes: np.ndarray = field(repr=False)
    """Hash of each document or block, uint64."""

    def figures(self) -> dict[str, Any]:
        """Return all fields that are numbers or text."""
        return {k: v for k, v in vars(self).items() if not isinstance(v, np.ndarray)}


@dataclass(frozen=True)
class DatasetReport:
    """Describes a dataset."""

    path: str
    tokenizer: str
    vocab_size: int
    splits: dict[str, SplitReport]
    overlap: int | None
    """Number of documents or blocks of `val` that also occur in `train`; None for a single split."""

    def figures(self) -> dict[str, Any]:
        """Return all fields that are numbers or text, for JSON."""
        return {**vars(self), "splits": {name: split.figures() for name, split in self.splits.items()}}


def inspect(dataset: Dataset, progress: Callable[[int, int, int], None] = lambda *_: None) -> DatasetReport:
    """Return the statistics of `dataset`.

    `progress` receives the number of tokens read, the number to read, and the former again. Raises UserError where
    the files cannot be read, or hold an id outside the vocabulary.
    """
    total = 2 * sum(len(tokens) for tokens in dataset.splits.values())  # each is read twice
    read = itertools.count(STRETCH, STRETCH)

    def seen() -> None:
        done = min(next(read), total)
        progress(done, total, done)

    splits = {name: _inspect_split(tokens, dataset.tokenizer, seen) for name, tokens in dataset.splits.items()}
    overlap = None
    if {"train", "val"} <= splits.keys():
        overlap = int(np.isin(splits["val"].hashes, splits["train"].hashes).sum())
    tokenizer = dataset.tokenizer
    return DatasetReport(str(dataset.path), tokenizer.kind, tokenizer.vocab_size, splits, overlap)


def _inspect_split(tokens: Tokens, tokenizer: Tokenizer, seen: Callable[[], None]) -> SplitReport:
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for stretch in _stretches(tokens, seen):
        counts += np.bincount(stretch.astype(np.int64), minlength=len(counts))
    eot = tokenizer.eot if tokenizer.eot is not None and counts[tokenizer.eot] else None
    stretches = _stretches(tokens, seen)
    measured, hashed = array("q"), array("Q")  # compact, since there may be a hundred million
    for length, value in _documents(stretches, eot) if eot is not None else _blocks(stretches):
        measured.append(length)
        hashed.append(value)
    lengths, hashes = np.array(measured, dtype=np.int64), np.array(hashed, dtype=np.uint64)
    spread = {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()} if len(lengths) else {}
    starts = np.linspace(0, max(0, len(tokens) - EXCERPT_TOKENS), EXCERPTS).astype(np.int64).tolist()
    return SplitReport(
        formats=sorted({f"{shard.kind} {np.dtype(shard.dtype).name}" for shard in tokens.shards}),
        files=len(tokens.shards),
        tokens=len(tokens),
        documents=len(lengths) if eot is not None else None,
        tokens_per_document={**spread, "mean": float(lengths.mean())} if eot is not None and len(lengths) else {},
        eot_rate=float(counts[eot] / len(tokens)) if eot is not None else 0.0,
        largest_id=int(counts.nonzero()[0].max()),
        unused_ids=int((counts == 0).sum()),
        duplicates=len(hashes) - len(np.unique(hashes)),
        excerpts=[tokenizer.decode(tokens[s : s + EXCERPT_TOKENS].tolist()) for s in starts],
        lengths=lengths,
        counts=counts,
        hashes=hashes,
    )


def _stretches(tokens: Tokens, seen: Callable[[], None]) -> Iterator[np.ndarray]:
    for start in range(0, len(tokens), STRETCH):
        yield tokens[start : start + STRETCH]
        seen()


def _documents(stretches: Iterable[np.ndarray], eot: int) -> Iterator[tuple[int, int]]:
    """Yield length and hash of each document; end-of-text tokens may begin documents or end them."""
    document = _Digest()
    for stretch in stretches:
        begun, *rest = np.split(stretch, np.flatnonzero(stretch == eot))
        document.add(begun)
        for piece in rest:
            if document.length:
                yield document.length, document.hash()
            document = _Digest()
            document.add(piece[1:])  # without the end-of-text before it
    if document.length:
        yield document.length, document.hash()


def _blocks(stretches: Iterable[np.ndarray]) -> Iterator[tuple[int, int]]:
    for stretch in stretches:
        for start in range(0, len(stretch) - BLOCK + 1, BLOCK):
            block = _Digest()
            block.add(stretch[start : start + BLOCK])
            yield block.length, block.hash()


class _Digest:
    """Computes a 64-bit hash of tokens, which does not depend on their dtype."""

    def __init__(self) -> None:
        self.length = 0
        self._state = hashlib.blake2b(digest_size=8)

    def add(self, tokens: np.ndarray) -> None:
        self.length += len(tokens)
        self._state.update(tokens.astype("<u4").tobytes())

    def hash(self) -> int:
        return int.from_bytes(self._state.digest(), "little")
