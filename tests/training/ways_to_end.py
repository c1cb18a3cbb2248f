"""The ways in which a run can end, each a fault in its process or a signal to it; `ends.py` ends runs in them."""

import errno
import mmap
import os
import resource
import shutil
import signal
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2 import checkpoint, tensor_file
from gpt2.data import batches
from gpt2.evaluation import loss as evaluation
from gpt2.optim import adamw
from gpt2.runlog import records
from gpt2.training import loop, periodic, session

STEPS = 24
"""Number of optimizer steps of a run that nothing happens to."""


class Shared:
    """What a run tells this process: the updates it has made."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def steps(self) -> int:
        """Whole updates made in all."""
        return struct.unpack("q", self.memory[:8])[0]

    @steps.setter
    def steps(self, value: int) -> None:
        self.memory[:8] = struct.pack("q", value)


@dataclass
class Way:
    """A way to end a run."""

    arrange: Callable[["Run"], None] = lambda run: None
    """Called in the run's process before it begins."""
    send: int | None = None
    """The signal to send."""
    statuses: tuple[int, ...] = (2,)
    """Exit statuses that are right."""
    saves: bool = True
    """Whether the last whole step can be saved."""
    stderr: str = "file"
    """Where its messages go: file, closed, full, or a pipe that nobody reads."""
    undo: Callable[["Run"], None] = lambda run: None
    """Called in this process before the run is resumed."""


@dataclass
class Run:
    """A run that is going to end."""

    out: Path
    data: Path
    shared: Shared
    step: int
    """The update, counted from 0, in which it happens."""

    def at_step(self, work: Callable[[], None], *, after: bool = False) -> None:
        """Have something done in that update, before or after it is made."""
        make = loop.train_step

        def patched(run: Any) -> Any:
            if not after and run.state.step == self.step:
                work()
            result = make(run)
            self.shared.steps = run.state.step + 1
            if after and run.state.step == self.step:
                work()
            return result

        loop.train_step = patched

    def count(self) -> None:
        """Count the updates, and do nothing else."""
        self.at_step(lambda: None)


def raising(error: BaseException) -> Callable[..., Any]:
    def work(*arguments: Any, **named: Any) -> Any:
        raise error

    return work


def from_step_on(owner: Any, name: str, error: Callable[[], BaseException]) -> Callable[[Run], None]:
    """Have a function fail from an update on."""

    def arrange(run: Run) -> None:
        run.at_step(lambda: setattr(owner, name, raising(error())))

    return arrange


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_update(error: Callable[[], BaseException]) -> Callable[[Run], None]:
    return lambda run: run.at_step(raising(error()))


def fail_on_the_way(run: Run) -> None:
    """Have a checkpoint's tensors meet a full disk somewhere in the middle."""

    def work() -> None:
        tensor_file._write_all = raising(no_space())

    run.at_step(work)


def without_descriptors(run: Run) -> None:
    def work() -> None:
        highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with suppress(OSError):
            while True:
                os.open(os.devnull, os.O_RDONLY)

    run.at_step(work)


class Disk:
    """The log's file on a disk that can be full."""

    def __init__(self, file: Any) -> None:
        self.file, self.full = file, False

    def write(self, data: bytes) -> int:
        if self.full:
            raise no_space()
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def full_log(updates: int) -> Callable[[Run], None]:
    """Have the log on a full disk for some updates."""

    def arrange(run: Run) -> None:
        open_file, disks = records.LogWriter._open, []

        def opened(writer: Any) -> None:
            open_file(writer)
            writer._file = Disk(writer._file)
            disks.append(writer._file)

        records.LogWriter._open = opened
        make = loop.train_step

        def patched(training: Any) -> Any:
            disks[0].full = run.step <= training.state.step < run.step + updates
            return make(training)

        loop.train_step = patched
        run.count()

    return arrange


def vanish(run: Run) -> None:
    run.at_step(lambda: (run.data / "train.bin").unlink())


def other_ids(run: Run) -> None:
    def work() -> None:
        size = (run.data / "train.bin").stat().st_size
        (run.data / "train.bin").write_bytes(b"\xff\xff" * (size // 2))

    run.at_step(work)


def restore_data(run: Run) -> None:
    shutil.copyfile(run.data / "kept.bin", run.data / "train.bin")


def delete_folder(run: Run) -> None:
    run.at_step(lambda: shutil.rmtree(run.out))


def during_evaluation(run: Run) -> None:
    run.count()
    measure, calls = evaluation.gather, []

    def patched(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 8 + run.step:  # 8 batches an evaluation: in one of the first four
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*arguments)

    evaluation.gather = patched


def half_an_update(run: Run) -> None:
    def work() -> None:
        adamw.AdamW.step = raising(RuntimeError("in the middle"))

    run.at_step(work)


def samples_on_a_full_disk(run: Run) -> None:
    original = records.write_text

    def patched(path: Path, text: str) -> None:
        if "samples" in str(path):
            raise no_space()
        original(path, text)

    records.write_text = patched
    run.count()


def config_on_a_full_disk(run: Run) -> None:
    session.write_text = raising(no_space())


WAYS = {
    "SIGTERM": Way(Run.count, signal.SIGTERM, (75,)),
    "SIGINT": Way(Run.count, signal.SIGINT, (75,)),
    "SIGHUP": Way(Run.count, signal.SIGHUP, (75,)),
    "SIGTERM in an evaluation": Way(during_evaluation, None, (75,)),
    "stderr: its reader dies": Way(Run.count, None, (0,), stderr="pipe"),
    "stderr: closed": Way(Run.count, None, (0,), stderr="closed"),
    "stderr: full disk": Way(Run.count, None, (0,), stderr="full"),
    "full disk: log": Way(full_log(STEPS), None, (0,)),
    "full disk: log, for a while": Way(full_log(3), None, (0,)),
    "full disk: samples": Way(samples_on_a_full_disk, None, (0,)),
    "full disk: best.json": Way(from_step_on(checkpoint, "write_text", no_space), None, (0,)),
    "full disk: config.toml": Way(config_on_a_full_disk, None, (2,), saves=False),
    "full disk: weights": Way(fail_on_the_way, None, (2,), saves=False),
    "full disk: manifest": Way(from_step_on(checkpoint, "write_manifest", no_space), None, (2,), saves=False),
    "no descriptors": Way(without_descriptors, None, (2,)),
    "data: deleted": Way(vanish, None, (2,), undo=restore_data),
    "data: other ids": Way(other_ids, None, (2,), undo=restore_data),
    "folder deleted": Way(delete_folder, None, (2,)),
    "no memory": Way(in_update(lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), None),
    "exception: update": Way(in_update(lambda: ValueError("no\nfurther")), None, (1,)),
    "exception: batch": Way(from_step_on(batches, "gather", lambda: IndexError("x")), None, (1,)),
    "exception: half an update": Way(half_an_update, None, (1,), saves=False),
    "exception: evaluation": Way(from_step_on(periodic, "estimate_losses", lambda: KeyError("x")), None, (1,)),
    "exception: samples": Way(from_step_on(periodic, "sample_texts", lambda: AssertionError()), None, (1,)),
    "exception: records": Way(from_step_on(loop.device, "peak_memory", lambda: OSError(5, "I/O error")), None, (2,)),
    "exception: console": Way(from_step_on(loop.RunConsole, "step", lambda: RuntimeError("x")), None, (1,)),
}
