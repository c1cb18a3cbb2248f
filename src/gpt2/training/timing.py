"""Where the time goes: the phases of an optimizer step, the wall time of a process, and slow processes."""

import itertools
import math
import socket
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from gpt2.distributed.world import World
from gpt2.runlog.console import RunConsole
from gpt2.runlog.records import LogWriter

STRAGGLER_INTERVAL = 20
"""Number of optimizer steps between two comparisons of the processes."""
STRAGGLER_RATIO = 1.5
"""How many times as long as the other processes' median a straggler takes."""

Instant = float | torch.cuda.Event


def device_clock(device: torch.device) -> Callable[[], Instant]:
    """Return a function that takes the time on `device`.

    A GPU runs behind the program and takes the time itself, as an event, so that the program need not wait for it.
    """
    return _cuda_event if device.type == "cuda" else time.perf_counter


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def phase_seconds(marks: Sequence[tuple[str, Instant]]) -> dict[str, float]:
    """Return the seconds of each phase; a mark is a phase's name and its end. The device must have finished them."""
    seconds: dict[str, float] = {}
    for (_, begin), (phase, end) in itertools.pairwise(marks):
        if isinstance(begin, float) and isinstance(end, float):
            took = end - begin
        else:
            assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
            took = begin.elapsed_time(end) / 1000
        seconds[phase] = seconds.get(phase, 0.0) + took
    return seconds


class Ledger:
    """A ledger attributes all wall time since it was made to named phases; time of no phase is `other`.

    imports: seconds that the process needed before that, mostly to import PyTorch.
    """

    def __init__(self, imports: float = 0.0) -> None:
        self.phases: dict[str, float] = {"imports": imports} if imports else {}
        self.marked = time.perf_counter()

    def mark(self, phase: str = "other") -> float:
        """Attribute the time since the last mark to a phase; return its seconds."""
        now = time.perf_counter()
        seconds, self.marked = now - self.marked, now
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        return seconds

    def move(self, phase: str, seconds: float) -> None:
        """Attribute to a phase some seconds that were, or will be, attributed to `other`."""
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        self.phases["other"] = self.phases.get("other", 0.0) - seconds

    def steps(self, phases: Sequence[dict[str, float]]) -> float:
        """Attribute the time since the last mark to the phases of optimizer steps; return its seconds."""
        seconds = self.mark("other")
        for step in phases:
            for phase, share in step.items():
                self.move(phase, share)
        return seconds

    def totals(self) -> dict[str, float]:
        """Return the seconds of each phase until now; their sum is the wall time since the ledger was made."""
        self.mark()
        return {phase: round(seconds, 5) for phase, seconds in self.phases.items()}


def straggler(seconds: Sequence[float]) -> tuple[int, float] | None:
    """Return the rank of a process that took much longer than the others, and the ratio to their median, or None."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = statistics.median([s for rank, s in enumerate(seconds) if rank != slowest] or [math.inf])
    return (slowest, seconds[slowest] / others) if seconds[slowest] > STRAGGLER_RATIO * others else None


class StragglerWatch:
    """Compares the processes' seconds for data and forward, in which only sharded processes wait for each other."""

    def __init__(self, world: World, log: LogWriter, console: RunConsole) -> None:
        self.world, self.log, self.console = world, log, console
        self.seconds: list[float] = []
        self.known: int | None = None

    def look(self, step: int, phases: Sequence[dict[str, float]]) -> None:
        """Add the phases of the last optimizer steps, up to `step`, and log a straggler that was not known."""
        self.seconds += [seconds["data"] + seconds["forward"] for seconds in phases]
        if self.world.size == 1 or len(self.seconds) < STRAGGLER_INTERVAL:
            return
        every = self.world.gather((statistics.median(self.seconds), socket.gethostname()))
        self.seconds.clear()
        found = straggler([seconds for seconds, _ in every])
        if found is not None and found[0] != self.known:
            rank, times = found
            seconds, host = every[rank]
            self.log.write("straggler", step, rank=rank, host=host, seconds=round(seconds, 5), times=round(times, 2))
            self.console.note(
                f"step {step} · process {rank} on {host} slows the others down: data and forward take "
                f"{1000 * seconds:.3g} ms, {times:.1f} times the others' median"
            )
        self.known = found[0] if found else None
