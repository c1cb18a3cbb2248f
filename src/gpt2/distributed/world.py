"""The processes that train together: who they are and what they agree on.

A process alone goes the same way, on which everything here then does nothing, correctly.
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

from gpt2.errors import ToldElsewhere, UserError

T = TypeVar("T")

ANSWER_SECONDS = 10
"""For how long a process that is about to end asks about the others."""


@dataclass(frozen=True)
class World:
    """This process's place among those that train together. All of them must call a method, or none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    control: Any = None
    """The group through which they tell each other small things, without waiting for a GPU; None is the default."""

    watchdog: "Watchdog | None" = None

    def apart(self) -> "World":
        """The same processes with a channel of their own, for what happens beside the training."""
        if self.size == 1:
            return self
        return replace(self, control=dist.new_group(backend="gloo"), watchdog=None)

    def beat(self, where: str) -> None:
        """Say that this process is alive and where it is; who says nothing for too long ends the group."""
        if self.watchdog is not None:
            self.watchdog.beat(where)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The small picklable `value` of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set anywhere."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(int(flag))
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return bool(tensor)

    def concatenated(self, tensor: Tensor) -> Tensor:
        """The one-dimensional tensors of every process, equally long, by rank."""
        if self.size == 1:
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return torch.cat(found)

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here. A UserError of one process is raised in all, so that none waits for it."""
        if self.size == 1:
            return work()
        results, error = [], None
        try:
            results.append(work())
        except UserError as caught:
            error = str(caught)
        if (first := next((e for e in self.gather(error) if e is not None), None)) is not None:
            raise UserError(first) if self.is_main else ToldElsewhere(first)
        return results[0]

    def main_only(self, work: Callable[[], T]) -> T | None:
        """What `work` gives in the main process, for which the others wait; None in those."""
        return self.agreed(lambda: work() if self.is_main else None)

    def main_first(self, work: Callable[[], T]) -> T:
        """What `work` gives, which the main process does before the others; they find done what it leaves behind."""
        results: list[T] = []
        for is_mains_turn in (True, False):
            if is_mains_turn == self.is_main:
                self.agreed(lambda: results.append(work()))
            elif self.size > 1:
                self.agreed(lambda: None)
        return results[0]


class Watchdog(threading.Thread):
    """Ends this process where it has come no further for some time, and says which process all wait for.

    The processes leave their whereabouts in the store through which they met.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.store.set(f"gpt2/{rank}", "0 its start")
        self.beats = 0
        self.last = float("inf")  # until training begins: before it data may be prepared for hours
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
        """What the others have left in the store says about who hangs."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(self.furthest_behind()), daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)  # who keeps the store may be who hangs, or was on a machine that is off
        silence = "the main process or its torchrun, which knows about the others, does not answer"
        return (
            f"gpt2: process {self.rank} came no further for {waited:.0f} s (dist_timeout={self.seconds:g}); "
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
    """The world that torchrun made this process a part of; without torchrun, a world of one."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield ALONE
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=2 * timeout_seconds)  # the watchdog is sooner and says more
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = unused_part(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    watchdog = Watchdog(store, rank, size, timeout_seconds)
    try:
        control = dist.new_group(backend="gloo") if backend == "nccl" else None
        yield World(rank, size, int(os.environ.get("LOCAL_RANK", 0)), control, watchdog)
    finally:
        watchdog.done.set()
        watchdog.join()
        dist.destroy_process_group()


def unused_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of the store in which only the processes that live now have written anything.

    torchrun keeps one store while it starts processes again, in which PyTorch uses the same keys as before, so that
    they may take the address of one that died for that of its successor. Its count of the restarts is no name for a
    part: machines can differ in it. So each process shows a name never used before, and the main one answers under it
    with the name of the part, until all have taken that: what one shows may still be its predecessor's.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"gpt2/arrived/{rank}", name)
        part = store.get(f"gpt2/part/{name}").decode()
        store.set(f"gpt2/taken/{part}/{rank}", "")
        return dist.PrefixStore(part, store)
    while not store.check([f"gpt2/taken/{name}/{other}" for other in range(1, size)]):
        for other in range(1, size):
            arrived = store.get(f"gpt2/arrived/{other}").decode()
            store.set(f"gpt2/part/{arrived}", name)
        time.sleep(0.01)
    return dist.PrefixStore(name, store)
