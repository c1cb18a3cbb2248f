"""The processes that train together: who they are and what they agree on.

A single process uses the same code, and everything here then does nothing.
"""

import faulthandler
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gpt2.errors import ReportedElsewhere, UserError, first_line

T = TypeVar("T")

MEETING = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables by which PyTorch's launcher tells a process where the others are."""
ANSWER_SECONDS = 10
"""Seconds for which a process that is about to end asks about the others."""


@dataclass(frozen=True)
class World:
    """A world is all processes that train together, seen from this one. All of them must call a method, or none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    """Number of processes of this machine."""
    control: Any = None
    """The process group for small messages, which do not wait for a GPU; None is the default group."""

    watchdog: "Watchdog | None" = None

    def with_own_channel(self) -> "World":
        """Return the same processes with a separate channel, for communication in the background."""
        if self.size == 1:
            return self
        return replace(self, control=dist.new_group(backend="gloo"), watchdog=None)

    def beat(self, where: str) -> None:
        """Report that this process is alive and where it is; one that does not for too long ends the group."""
        if self.watchdog is not None:
            self.watchdog.beat(where)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and lines for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the small picklable `value` of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(int(flag))
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return bool(tensor)

    def concatenated(self, tensor: Tensor) -> Tensor:
        """Return the one-dimensional tensors of all processes, equally long, concatenated by rank."""
        if self.size == 1:
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return torch.cat(found)

    def agreed(self, work: Callable[[], T]) -> T:
        """Return the result of `work`. A UserError of one process is raised in all, so that none waits for it."""
        if self.size == 1:
            return work()
        results, error = [], None
        try:
            results.append(work())
        except UserError as caught:
            error = str(caught)
        if (first := next((e for e in self.gather(error) if e is not None), None)) is not None:
            raise UserError(first) if self.is_main else ReportedElsewhere(first)
        return results[0]

    def main_only(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, which only the main process does while the others wait; None in those."""
        return self.agreed(lambda: work() if self.is_main else None)

    def main_first(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, which the main process does before the others, which then find its files."""
        if self.is_main:
            result = self.agreed(work)
            self.agreed(lambda: None)
        else:
            self.agreed(lambda: None)
            result = self.agreed(work)
        return result


class Watchdog(threading.Thread):
    """Ends this process when it has made no progress for some time, and reports which process all wait for.

    Every process writes its progress into the store through which they met.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.store.set(f"gpt2/{rank}", "0 its start")
        self.beats = 0
        self.last = float("inf")  # until training begins, because data may be prepared for hours before
        self.done = threading.Event()
        self.start()

    def beat(self, where: str) -> None:
        self.beats += 1
        self.store.set(f"gpt2/{self.rank}", f"{self.beats} {where}")
        self.last = time.monotonic()

    def run(self) -> None:
        while not self.done.wait(self.seconds / 20):
            waited = time.monotonic() - self.last
            if waited > self.seconds:
                sys.stderr.write(self.verdict(waited))
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)

    def verdict(self, waited: float) -> str:
        """Return a line that says, from the progress in the store, which process hangs."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(self.furthest_behind()), daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)  # the process that keeps the store may hang, or its machine may be off
        silence = "the main process or its torchrun, which knows about the others, does not answer"
        return (
            f"gpt2: process {self.rank} made no progress for {waited:.0f} s (dist_timeout={self.seconds:g}); "
            f"{found[0] if found else silence}; this is where process {self.rank} waits:\n"
        )

    def furthest_behind(self) -> str:
        others = [rank for rank in range(self.size) if rank != self.rank]
        found = {rank: self.store.get(f"gpt2/{rank}").decode().split(" ", 1) for rank in others}
        least = min(int(beats) for beats, _ in found.values())
        behind = [f"process {rank} at {where}" for rank, (beats, where) in found.items() if int(beats) == least]
        return f"of the others furthest behind: {', '.join(behind)}"


ALONE = World()


@contextmanager
def joined(device: torch.device, backend: str, timeout_seconds: float) -> Iterator[World]:
    """Join the processes that torchrun started, and yield their world; without torchrun, a world of one."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield ALONE
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # small messages, and what is offloaded to the CPU, are in its memory
    timeout = timedelta(seconds=2 * timeout_seconds)  # the watchdog ends the process earlier and says more
    store, rank, size = _meet(timeout)
    store = unused_namespace(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    watchdog = Watchdog(store, rank, size, timeout_seconds)
    try:
        local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        yield World(rank, size, local_rank, local_size, watchdog=watchdog)
    finally:
        watchdog.done.set()
        watchdog.join()
        dist.destroy_process_group()


def _meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """Return the store of the main process, where all processes meet, and this one's rank and their number.

    Raises UserError where they do not meet within the time.
    """
    try:
        return next(dist.rendezvous("env://", timeout=timeout))
    except (ValueError, RuntimeError) as error:
        given = ", ".join(f"{name}={os.environ.get(name, '')}" for name in MEETING)
        raise UserError(
            f"this process does not meet the others ({first_line(error).rstrip('.')}), with {given} in the "
            "environment; start all of them with torchrun or --nproc, which set these variables, or unset RANK to "
            "train in one process"
        ) from None


def unused_namespace(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Return a namespace of the store into which only the processes that are alive now have written.

    torchrun keeps one store while it restarts processes, and PyTorch uses the same keys in it every time, so that a
    process could take the address of a dead process for that of its successor. torchrun's number of restarts cannot
    name the namespace, because it can differ between machines. So each process publishes a name never used before,
    and the main one answers under that name with the namespace, until all have taken it: a published name may still
    be that of a process before the restart.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"gpt2/arrived/{rank}", name)
        namespace = store.get(f"gpt2/namespace/{name}").decode()
        store.set(f"gpt2/taken/{namespace}/{rank}", "")
        return dist.PrefixStore(namespace, store)
    while not store.check([f"gpt2/taken/{name}/{other}" for other in range(1, size)]):
        for other in range(1, size):
            arrived = store.get(f"gpt2/arrived/{other}").decode()
            store.set(f"gpt2/namespace/{arrived}", name)
        time.sleep(0.01)
    return dist.PrefixStore(name, store)
