"""Writes the checkpoints of a run, beside the training where that is asked for."""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch

from gpt2 import checkpoint
from gpt2.checkpoint import Snapshot
from gpt2.distributed.world import World
from gpt2.tensor_file import TensorShard

LOW_PRIORITY = 10
"""Of the thread that writes in the background, as nice(1) counts."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on disk."""

    step: int
    path: str
    seconds: float
    """That the training waited."""
    background_seconds: float
    """That writing went on beside it."""


class Saver:
    """One checkpoint at a time, in all processes of the world together.

    In the background it writes a copy, taken while training waits, into memory that is kept for the next one. What
    goes wrong there is raised by the next call.
    """

    def __init__(self, world: World, background: bool) -> None:
        self.background = background
        self.world = world.apart() if background else world
        self.copies: dict[str, torch.Tensor] = {}
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.finished: list[Saved] = []

    def save(self, step: int, taken: Snapshot, tidy: Callable[[], None]) -> None:
        """Have a snapshot written, and then what is left over tidied by the main process. Raises UserError."""
        began = time.perf_counter()
        self.wait()

        def write() -> None:
            written = time.perf_counter()
            checkpoint.write(taken, self.world)
            self.world.main_only(tidy)
            now = time.perf_counter()
            waited, beside = (written - began, now - written) if self.background else (now - began, 0.0)
            self.finished.append(Saved(step, taken.folder.name, round(waited, 3), round(beside, 3)))

        def beside() -> None:
            try:
                if sys.platform == "linux":  # where a thread has a priority of its own: training goes first
                    nice = max(LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, 0))
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
                write()
            except Exception as error:
                self.error = error

        if not self.background:
            write()
            return
        taken = replace(taken, weights=self._copied(taken.weights, "w"), moments=self._copied(taken.moments, "m"))
        self.thread = threading.Thread(target=beside, daemon=True)
        self.thread.start()

    def _copied(self, parts: dict[str, TensorShard], kind: str) -> dict[str, TensorShard]:
        """The same parts in memory of their own."""
        copied = {}
        for name, part in parts.items():
            rows = part.values
            if (key := f"{kind}/{name}") not in self.copies:
                self.copies[key] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
            copied[name] = replace(part, values=self.copies[key].copy_(rows, non_blocking=True))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copied

    @property
    def failed(self) -> bool:
        """Whether writing in the background came to nothing; `wait` says why."""
        return self.error is not None

    def wait(self) -> None:
        """Until what is being written is on disk. Raises what went wrong: UserError for the disk's faults."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def settle(self) -> Exception | None:
        """Wait until nothing is being written any more; returns what went wrong and forgets it."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def collect(self) -> list[Saved]:
        """The checkpoints finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self.thread is not None and self.world.size == 1:  # others might not come to an end
            self.thread.join()
