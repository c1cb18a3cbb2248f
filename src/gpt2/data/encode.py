"""Tokenisation on all cores, in the order of the text."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2.data.sources import Piece
from gpt2.data.text import Mark
from gpt2.errors import UserError
from gpt2.tokenizers import Tokenizer, from_json

BATCH = 1 << 20
"""Approximate number of characters that a worker receives at a time."""
WORTH_A_POOL = 8
"""Number of batches from which on workers are started; less text is encoded before they would be ready."""


@dataclass(frozen=True)
class Batch:
    """A batch is a sequence of pieces with their splits, and the mark in the text after the last of them."""

    pieces: Sequence[tuple[str, Piece]]
    mark: Mark


@dataclass(frozen=True)
class Rules:
    """Says how text becomes tokens, apart from the tokenizer."""

    eot: str
    """Where every document gets its end-of-text token: `first`, `last` or `none`."""
    parse_special: bool
    """Whether the text of a special token becomes that token, and not ordinary ones."""


@dataclass(frozen=True)
class Encoded:
    """Holds the tokens of a batch."""

    tokens: dict[str, np.ndarray]
    """The tokens of each split, uint16 or uint32 (tokens,)."""
    found: Counter[str]
    """How often the text contains each special token."""


def encode_batch(tokenizer: Tokenizer, pieces: Sequence[tuple[str, Piece]], rules: Rules) -> Encoded:
    """Return the tokens of the pieces."""
    found = Counter[str]()
    special = tokenizer.special.ids
    encoded: dict[str, list[np.ndarray]] = {}
    end = np.array([] if rules.eot == "none" or tokenizer.eot is None else [tokenizer.eot], dtype=np.uint32)
    for split, piece in pieces:
        arrays = encoded.setdefault(split, [])
        if piece.starts and rules.eot == "first":
            arrays.append(end)
        arrays.append(tokenizer.encode_array(piece.text, rules.parse_special))
        if piece.ends and rules.eot == "last":
            arrays.append(end)
        for text in special:
            found[text] += piece.text.count(text)
    smallest = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    tokens = {split: np.concatenate(arrays).astype(smallest) for split, arrays in encoded.items()}
    return Encoded(tokens, +found)


def encode(
    batches: Iterable[Batch], tokenizer: Tokenizer, rules: Rules, workers: int
) -> Generator[tuple[Batch, Encoded]]:
    """Yield the batches in their order, each with its tokens. The memory in use is bounded.

    `workers` processes do the work if there is enough of it. Raises UserError where one of them dies.
    """
    batches = iter(batches)
    few = list(itertools.islice(batches, WORTH_A_POOL)) if workers > 1 else []
    if workers == 1 or len(few) < WORTH_A_POOL:
        for batch in itertools.chain(few, batches):
            yield batch, encode_batch(tokenizer, batch.pieces, rules)
        return
    context = multiprocessing.get_context("spawn")  # this process has threads, which a fork would not survive
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer.to_json(), rules))
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in itertools.chain(few, batches):
            with _ignoring_interrupts():  # workers, which start here, ignore Ctrl-C: the main process stops them
                waiting.append((batch, pool.submit(_work, batch.pieces)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for lack of memory; run the same again with fewer --workers. (A script "
            'that calls prepare() with workers needs `if __name__ == "__main__":`)'
        ) from None
    finally:
        with _ignoring_interrupts():  # a second Ctrl-C would leave workers that wait forever
            pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in the meantime, in this process and in processes that it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread handles signals
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Tokenizer, Rules]
"""Tokenizer and rules of a worker process; the tokenizer is too large to send with each batch."""


def _start_worker(description: dict[str, Any], rules: Rules) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = from_json(description), rules


def _end_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(pieces: Sequence[tuple[str, Piece]]) -> Encoded:
    tokenizer, rules = _worker
    return encode_batch(tokenizer, pieces, rules)
