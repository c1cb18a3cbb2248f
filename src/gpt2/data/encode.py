"""Text to tokens on all cores, in the order of the text."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
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
"""Characters that go to a worker at a time, about."""
WORTH_A_POOL = 8
"""Batches; less text is encoded sooner than the workers have started."""


@dataclass(frozen=True)
class Batch:
    """Some pieces in their order with the split each goes to, and how far the text is read with them."""

    pieces: Sequence[tuple[str, Piece]]
    mark: Mark


def encode_batch(tokenizer: Tokenizer, pieces: Sequence[tuple[str, Piece]], eot: str) -> dict[str, np.ndarray]:
    """The tokens of each split's pieces, with end-of-text `first`, `last` or `none` in every document."""
    parts: dict[str, list[np.ndarray]] = {}
    end = np.array([] if eot == "none" or tokenizer.eot is None else [tokenizer.eot], dtype=np.uint32)
    for split, piece in pieces:
        mine = parts.setdefault(split, [])
        if piece.starts and eot == "first":
            mine.append(end)
        mine.append(tokenizer.encode_array(piece.text))
        if piece.ends and eot == "last":
            mine.append(end)
    smallest = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return {split: np.concatenate(mine).astype(smallest) for split, mine in parts.items()}


def encode(
    batches: Iterable[Batch], tokenizer: Tokenizer, eot: str, workers: int
) -> Generator[tuple[Batch, dict[str, np.ndarray]]]:
    """The batches, each with its tokens, in their order; what is held in memory is bounded.

    The work is done by `workers` processes where there is enough of it. Raises UserError where one of them dies.
    """
    batches = iter(batches)
    few = list(itertools.islice(batches, WORTH_A_POOL)) if workers > 1 else []
    if workers == 1 or len(few) < WORTH_A_POOL:
        for batch in itertools.chain(few, batches):
            yield batch, encode_batch(tokenizer, batch.pieces, eot)
        return
    context = multiprocessing.get_context("spawn")  # this process has threads, which a fork would not survive
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer.to_json(), eot))
    waiting: deque[tuple[Batch, Future[dict[str, np.ndarray]]]] = deque()
    try:
        for batch in itertools.chain(few, batches):
            with _deaf():  # so that workers, which begin here, ignore Ctrl-C: the first process tells them
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
        with _deaf():  # whoever is impatient would leave workers that wait for ever
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C does nothing meanwhile, in this process and in those that it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: tuple[Tokenizer, str]
"""Of a worker process: its tokenizer, which is too large to come with each batch, and where end-of-text goes."""


def _start_worker(description: dict[str, Any], eot: str) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = from_json(description), eot


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(pieces: Sequence[tuple[str, Piece]]) -> dict[str, np.ndarray]:
    tokenizer, eot = _worker
    return encode_batch(tokenizer, pieces, eot)
