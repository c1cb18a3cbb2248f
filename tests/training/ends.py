"""Ends runs in every way that a run can end, drawn at random, and sees what is lost.

    python tests/training/ends.py FOLDER DATASET COUNT [SEED] [WAY]

Each run is forked from this process, which has imported everything and computed nothing. Afterwards the fault is
taken away and the run resumed: it must end with the weights of the run that nothing happened to. Prints a line for
each run, and what was wrong with it.
"""

import errno
import io
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from gpt2 import checkpoint, tensor_file
from gpt2.cli import main
from gpt2.data import batches
from gpt2.evaluation import loss as evaluation
from gpt2.formats.run_folder import saved_steps
from gpt2.optim import adamw
from gpt2.runlog import records
from gpt2.runlog.records import read_log
from gpt2.training import loop, periodic, session

STEPS = 24
FLAGS = [
    f"--max_iters={STEPS}", "--batch_size=4", "--block_size=16", "--n_layer=1", "--n_head=2", "--n_embd=16",
    "--eval_interval=6", "--eval_iters=4", "--sample_interval=8", "--sample_tokens=6", "--checkpoint_interval=5",
    "--dropout=0.1", "--device=cpu", "--dtype=float32", "--compile=False", "--keep_checkpoints=1", "--llmc_log",
    "--init_from=auto",
]  # fmt: skip
FOREIGN = ("checkpoints/step_5/model.bin", "checkpoints/other.pt", "samples/mine.txt", "notes.txt", "llmc/readme")


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


def child(run: Run, way: Way, stderr: int | None) -> None:
    """Train in this process, a fork; never returns."""
    status = 99
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        if stderr is None:
            os.close(2)
            sys.stderr = None  # as Python has it that starts without
        else:
            os.dup2(stderr, 2)
            sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        way.arrange(run)
        main(["train", *FLAGS, f"--dataset={run.data}", f"--out_dir={run.out}"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def start(run: Run, way: Way) -> tuple[int, Path]:
    """Fork the run; returns its process id, and the file with what it said."""
    said = run.out.with_suffix(".stderr")
    target: int | None = None
    if way.stderr == "file":
        target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    elif way.stderr == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    elif way.stderr == "pipe":
        reader, target = os.pipe()
        os.close(reader)
    pid = os.fork()
    if pid == 0:
        child(run, way, target)
    if target is not None:
        os.close(target)
    return pid, said


def ended(pid: int, seconds: float = 120) -> int | None:
    """The exit status of a process; None, after killing it, where it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def weights(out: Path) -> bytes:
    return (checkpoint.folder_of(out, STEPS) / "model.safetensors").read_bytes()


def put_foreign(out: Path) -> None:
    for name in FOREIGN:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("theirs")


def one_end(number: int, name: str, way: Way, step: int, base: Path, dataset: Path, expected: bytes) -> list[str]:
    """End a run in a way; returns what was wrong."""
    wrong: list[str] = []
    out, data = base / f"run_{number}", base / f"data_{number}"
    shutil.copytree(dataset, data)
    shutil.copyfile(data / "train.bin", data / "kept.bin")
    run = Run(out, data, Shared(), step)
    put_foreign(out)
    pid, said = start(run, way)
    if way.send is not None:
        while run.shared.steps <= step and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0005)
        with suppress(ProcessLookupError):
            os.kill(pid, way.send)
    status = ended(pid)
    text = said.read_text() if way.stderr == "file" else ""
    if status not in way.statuses and not (way.send and status == 0):  # it may have been done already
        wrong.append(f"status {status}, said {text[-300:]!r}")
    if "Traceback" in text:
        wrong.append(f"a traceback: {text[-600:]!r}")
    made, saved = run.shared.steps, max(saved_steps(out), default=0)
    if way.saves and saved != made:
        wrong.append(f"{made} updates were made, and {saved} are saved: {text[-300:]!r}")
    if name != "folder deleted":
        for foreign in FOREIGN:
            if not (out / foreign).is_file() or (out / foreign).read_text() != "theirs":
                wrong.append(f"{foreign} was touched")
    way.undo(run)
    pid, said = start(run, Way())
    if (again := ended(pid)) != 0:
        wrong.append(f"resumed: status {again}, said {said.read_text()[-300:]!r}")
    elif weights(out) != expected:
        wrong.append("resumed: other weights at the end")
    elif name not in ("full disk: log", "exception: records"):
        steps = [r["step"] for r in read_log(out) if r["event"] == "train"]
        if steps != list(range(1, STEPS + 1)):
            wrong.append(f"the log has the updates {steps}")
    if not wrong:
        shutil.rmtree(out)
        shutil.rmtree(data)
        said.unlink()
    return wrong


def run_all(base: Path, dataset: Path, count: int, seed: int, only: str | None = None) -> int:
    """End `count` runs in ways drawn at random, each way once before any comes again; returns how many were wrong."""
    rng, bad = random.Random(seed), 0
    whole = Run(base / "whole", dataset, Shared(), -1)
    pid, said = start(whole, Way())
    if (status := ended(pid)) != 0:
        print(f"the undisturbed run ended with {status}: {said.read_text()}")
        return count
    expected = weights(whole.out)
    names: list[str] = []
    for number in range(count):
        if not names:
            names = [only] if only else rng.sample(sorted(WAYS), len(WAYS))
        name, step = names.pop(), rng.randrange(1, STEPS - 4)
        wrong = one_end(number, name, WAYS[name], step, base, dataset, expected)
        bad += bool(wrong)
        print(f"{number} · {name} · update {step} · {'; '.join(wrong) or 'nothing lost'}", flush=True)
    print(f"{count} ends, {bad} with something wrong (seed {seed})")
    return bad


if __name__ == "__main__":
    base, dataset, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else random.randrange(1 << 30)
    base.mkdir(parents=True, exist_ok=True)
    sys.exit(run_all(base, dataset, count, seed, sys.argv[5] if len(sys.argv) > 5 else None) > 0)
