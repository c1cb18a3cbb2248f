"""What records, progress and checkpoints cost a run, with training waiting for the disk or not.

    python benchmarks/checkpoints.py data/shakespeare --model gpt2 --batch_size 1 --block_size 64

Each run has one half of the cores, and at the same time the same updates are made on the other half by a process
that does nothing else: the trainer's update again and again, without its loop. So both meet the same moods of the
machine; the halves change places from round to round. The runs believe that they write to a terminal. The first two
checkpoints of a run are left out: their memory and files are new, where later ones take those of one that is deleted.
Linux only.
"""

import argparse
import contextlib
import json
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gpt2.cli.allocator import keep_freed_memory
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

WAYS = {
    "no checkpoints": [],
    "training waits": ["--checkpoint_interval={interval}"],
    "beside the training": ["--checkpoint_interval={interval}", "--async_checkpoint"],
}


class Measured(NamedTuple):
    """A run's."""

    seconds: float
    """Of the updates that are measured, and of all between them."""
    waited: list[float]
    """Seconds, at each checkpoint."""
    size: int
    """Bytes of a checkpoint."""


def measure(arguments: argparse.Namespace, way: list[str], halves: list[list[int]]) -> tuple[Measured, float]:
    """A run in one way on the first half of the cores, and seconds of its updates alone, beside it on the second."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as beside:
        interval = arguments.interval
        settings = {
            "dataset": arguments.dataset,
            "out_dir": f"{folder}/run",
            "model": arguments.model,
            "batch_size": arguments.batch_size,
            "block_size": arguments.block_size,
            "max_iters": interval * (arguments.checkpoints + 3),
            "eval_interval": 0,
            "eval_iters": 1,
            "compile": False,
            "keep_checkpoints": 1,
        }
        began, ended = 3 * interval - 1, interval * (arguments.checkpoints + 3) - 1
        alone = beside.submit(updates_alone, settings, began, ended, halves[1])
        flags = [f"--{name}={value}" for name, value in settings.items()]
        train(["-m", "gpt2", "train", *flags, *(flag.format(interval=interval) for flag in way)], halves[0])
        out = Path(folder, "run")
        records = read_log(out)
        times = {r["step"]: r["time"] for r in records if r["event"] == "train"}
        waited = [r["seconds"] for r in records if r["event"] == "checkpoint"]
        size = sum(p.stat().st_size for p in out.glob("checkpoints/*/*.safetensors"))
        return Measured(times[ended] - times[began], waited[2:-1], size), alone.result()


def on(cores: list[int], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Python program that has these cores and no others."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *arguments]
    return command, os.environ | {"OMP_NUM_THREADS": str(len(cores))}


def train(arguments: list[str], cores: list[int]) -> None:
    """Run `gpt2 train` as if on a terminal."""
    command, environment = on(cores, arguments)
    terminal, its_end = pty.openpty()
    reader = threading.Thread(target=read_all, args=[terminal], daemon=True)
    reader.start()
    subprocess.run(command, check=True, env=environment, stderr=its_end)
    os.close(its_end)
    reader.join()


def read_all(terminal: int) -> None:
    """Read what a terminal shows until nobody writes to it."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def updates_alone(settings: dict[str, Any], began: int, ended: int, cores: list[int]) -> float:
    """Seconds of the updates after number `began` up to `ended`, in a process that does nothing else."""
    command, environment = on(cores, [__file__, "--alone", json.dumps([settings, began, ended]), "-"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return float(subprocess.run(command, check=True, env=environment, **pipes).stdout)


def train_alone(settings: dict[str, Any], began: int, ended: int) -> None:
    """Be that process."""
    keep_freed_memory()
    run = set_up(TrainConfig(**settings), lambda line: None)
    times = []
    for _ in range(ended):
        train_step(run).loss.item()
        run.state.step += 1
        times.append(time.perf_counter())
    print(times[ended - 1] - times[began - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a prepared folder")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--block_size", type=int, default=64)
    parser.add_argument("--interval", type=int, default=10, help="updates between checkpoints")
    parser.add_argument("--checkpoints", type=int, default=3, help="that are measured in a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="to train")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        train_alone(*json.loads(arguments.alone))
        return

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this compares two programs at the same time and needs two cores")
    halves = [cores[: len(cores) // 2], cores[len(cores) // 2 :]]
    seconds: dict[str, list[float]] = {name: [] for name in arguments.ways}
    ratios: dict[str, list[float]] = {name: [] for name in arguments.ways}
    waited: dict[str, list[float]] = {name: [] for name in arguments.ways}
    size = 0
    for number in range(arguments.rounds):
        for name in arguments.ways:
            done, alone = measure(arguments, WAYS[name], halves if number % 2 else halves[::-1])
            seconds[name].append(done.seconds)
            ratios[name].append(done.seconds / alone)
            waited[name] += done.waited
            size = max(size, done.size)
            said = f"{done.seconds:.1f} s beside {alone:.1f} s, waited {done.waited}"
            print(f"round {number + 1}: {name}: {said}", file=sys.stderr, flush=True)

    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    updates = arguments.interval * arguments.checkpoints
    print(f"checkpoints of {size / 1e6:,.0f} MB, every {arguments.interval} updates, {updates} updates; {machine}\n")
    print("| | seconds, median (spread) | to the updates alone (spread) | waited at a checkpoint (spread) |")
    print("|---|---|---|---|")
    for name in arguments.ways:
        print(f"| {name} | {spread(seconds[name], '.1f')} | {spread(ratios[name], '.3f')} ", end="")
        print(f"| {spread(waited[name], '.2f')} s |" if waited[name] else "| |")


def spread(values: list[float], form: str) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
