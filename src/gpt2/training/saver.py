"""Writes the checkpoints of a run, in the background if requested."""

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
from gpt2.checkpoint import Checkpoint
from gpt2.distributed.world import World
from gpt2.tensor_file import TensorShard

LOW_PRIORITY = 10
"""Priority of the thread that writes in the background, as nice(1) counts."""


@dataclass(frozen=True)
class Saved:
    """Describes a checkpoint that is on disk."""

    step: int
    """Optimizer step of the checkpoint."""
    path: str
    """Name of its folder in `checkpoints/`."""
    seconds: float
    """Seconds that the training waited."""
    background_seconds: float
    """Seconds of writing in the background."""


class Saver:
    """Writes one checkpoint at a time, together with the savers of all processes of the world.

    In the background it writes a copy that it takes while training waits, and keeps the copy's memory for the next
    checkpoint. The next call of `save` or `wait` raises an exception that occurred in the background.
    """

    def __init__(self, world: World, background: bool) -> None:
        self.background = background
        self.world = world.with_own_channel() if background else world
        self.copies: dict[str, torch.Tensor] = {}
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.finished: list[Saved] = []

    def save(self, step: int, taken: Checkpoint, tidy: Callable[[], None]) -> None:
        """Write a checkpoint, and then call `tidy` in the main process. Raises UserError if it cannot be written."""
        began = time.perf_counter()
        self.wait()

        def write() -> None:
            start = time.perf_counter()
            checkpoint.write(taken, self.world)
            self.world.main_only(tidy)
            now = time.perf_counter()
            waited, background = (start - began, now - start) if self.background else (now - began, 0.0)
            self.finished.append(Saved(step, taken.folder.name, round(waited, 3), round(background, 3)))

        def write_in_background() -> None:
            try:
                if sys.platform == "linux":  # threads have priorities only there; training is more urgent
                    nice = max(LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, 0))
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
                write()
            except Exception as error:
                self.error = error

        if not self.background:
            write()
            return
        weights, optimizer_state = self._copied(taken.weights), self._copied(taken.optimizer_state)
        taken = replace(taken, weights=weights, optimizer_state=optimizer_state)
        self.thread = threading.Thread(target=write_in_background, daemon=True)
        self.thread.start()

    def _copied(self, shards: dict[str, TensorShard]) -> dict[str, TensorShard]:
        """Return copies of the shards in the saver's own memory."""
        copied = {}
        for name, shard in shards.items():
            values = shard.values
            if name not in self.copies:  # parameters and optimizer state have different names
                self.copies[name] = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            copied[name] = replace(shard, values=self.copies[name].copy_(values, non_blocking=True))
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copied

    @property
    def failed(self) -> bool:
        """Return whether writing in the background failed; `wait` raises the exception."""
        return self.error is not None

    def wait(self) -> None:
        """Wait until the checkpoint is on disk. Raises the exception if writing failed."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            raise self.error

    def settle(self) -> Exception | None:
        """Wait until nothing is being written any more; return the exception if writing failed, but only once."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        return error

    def collect(self) -> list[Saved]:
        """Return the checkpoints finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self.thread is not None and self.world.size == 1:  # other processes might never finish theirs
            self.thread.join()
