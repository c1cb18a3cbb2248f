"""Processes that hold the others up."""

import math
import socket
import statistics
from collections.abc import Sequence

from gpt2.runlog.console import RunConsole
from gpt2.runlog.records import LogWriter
from gpt2.training.setup import Run

INTERVAL = 20
"""Updates between looks."""
SLOW = 1.5
"""How much longer than the others' median a straggler takes."""


def straggler(seconds: Sequence[float]) -> tuple[int, float] | None:
    """The process, by rank, that took much longer than the others, and how many times as long as their median."""
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    others = statistics.median([s for rank, s in enumerate(seconds) if rank != slowest] or [math.inf])
    return (slowest, seconds[slowest] / others) if seconds[slowest] > SLOW * others else None


class StragglerWatch:
    """Compares what the processes take for data and forward: before these wait for each other, unless sharded."""

    def __init__(self, run: Run, log: LogWriter, console: RunConsole) -> None:
        self.run, self.log, self.console = run, log, console
        self.mine: list[float] = []
        self.known: int | None = None

    def look(self, updates: Sequence[dict[str, float]]) -> None:
        """Given the seconds of some updates by part in this process, tell of a straggler that was not known."""
        world, step = self.run.world, self.run.state.step
        self.mine += [seconds["data"] + seconds["forward"] for seconds in updates]
        if world.size == 1 or len(self.mine) < INTERVAL:
            return
        every = world.gather((statistics.median(self.mine), socket.gethostname()))
        self.mine.clear()
        found = straggler([seconds for seconds, _ in every])
        if found is not None and found[0] != self.known:
            rank, times = found
            seconds, host = every[rank]
            self.log.write("straggler", step, rank=rank, host=host, seconds=round(seconds, 5), times=round(times, 2))
            self.console.note(
                f"step {step} · process {rank} on {host} holds the others up: data and forward take it "
                f"{1000 * seconds:.3g} ms, {times:.1f} times the others' median"
            )
        self.known = found[0] if found else None
