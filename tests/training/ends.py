"""Ends runs in every way that a run can end, drawn at random, and sees what is lost.

    python tests/training/ends.py FOLDER DATASET COUNT [SEED] [WAY]

Each run is forked from this process, which has imported everything and computed nothing. Afterwards the fault is
taken away and the run resumed: it must end with the weights of the run that nothing happened to. Prints a line for
each run, and what was wrong with it. The ways are in `ways_to_end.py`.
"""

import io
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from ways_to_end import STEPS, WAYS, Run, Shared, Way

from gpt2 import checkpoint
from gpt2.cli import main
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.records import read_log

FLAGS = [
    f"--max_iters={STEPS}", "--batch_size=4", "--block_size=16", "--n_layer=1", "--n_head=2", "--n_embd=16",
    "--eval_interval=6", "--eval_iters=4", "--sample_interval=8", "--sample_tokens=6", "--checkpoint_interval=5",
    "--dropout=0.1", "--device=cpu", "--dtype=float32", "--compile=False", "--keep_checkpoints=1", "--llmc_log",
    "--init_from=auto",
]  # fmt: skip
FOREIGN = ("checkpoints/step_5/model.bin", "checkpoints/other.pt", "samples/mine.txt", "notes.txt", "llmc/readme")


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
