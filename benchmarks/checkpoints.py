"""Measure what records, progress and checkpoints cost a run, with checkpoints in the foreground or the background.

    python benchmarks/checkpoints.py data/shakespeare --model gpt2 --batch_size 1 --block_size 64

A run has one half of the cores. At the same time, a second process makes the same optimizer steps on the other half
and does nothing else. Both processes thus see the same state of the machine. They exchange their halves after each
round. The runs write their progress to a pseudo-terminal. The first two checkpoints of a run are not counted, because
they need new memory and new files, while later ones reuse those of deleted checkpoints. Linux only.
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

from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

WAYS = {
    "no checkpoints": [],
    "training waits": ["--checkpoint_interval={interval}"],
    "in the background": ["--checkpoint_interval={interval}", "--async_checkpoint"],
}


class Measured(NamedTuple):
    """The measurements of a run."""

    seconds: float
    """Seconds of the measured optimizer steps, and of everything between them."""
    waited: list[float]
    """Seconds that training waited at each checkpoint."""
    size: int
    """Number of bytes of a checkpoint."""


def measure(arguments: argparse.Namespace, way: list[str], halves: list[list[int]]) -> tuple[Measured, float]:
    """Measure a run on the first half of the cores, and the seconds of its steps alone on the second half."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as background:
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
        alone = background.submit(steps_alone, settings, began, ended, halves[1])
        flags = [f"--{name}={value}" for name, value in settings.items()]
        train(["-m", "gpt2", "train", *flags, *(flag.format(interval=interval) for flag in way)], halves[0])
        out = Path(folder, "run")
        records = read_log(out)
        times = {r["step"]: r["time"] for r in records if r["event"] == "train"}
        waited = [r["seconds"] for r in records if r["event"] == "checkpoint"]
        size = sum(p.stat().st_size for p in out.glob("checkpoints/*/*.safetensors"))
        return Measured(times[ended] - times[began], waited[2:-1], size), alone.result()


def on(cores: list[int], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that run a Python program on these cores only."""
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, *arguments]
    return command, os.environ | {"OMP_NUM_THREADS": str(len(cores))}


def train(arguments: list[str], cores: list[int]) -> None:
    """Run `gpt2 train` on a pseudo-terminal."""
    command, environment = on(cores, arguments)
    terminal, end_of_run = pty.openpty()
    reader = threading.Thread(target=read_all, args=[terminal], daemon=True)
    reader.start()
    subprocess.run(command, check=True, env=environment, stderr=end_of_run)
    os.close(end_of_run)
    reader.join()


def read_all(terminal: int) -> None:
    """Read and discard the output on a terminal until its other end is closed."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def steps_alone(settings: dict[str, Any], began: int, ended: int, cores: list[int]) -> float:
    """Return the seconds of the steps after number `began` up to `ended`, in a process that does nothing else."""
    command, environment = on(cores, [__file__, "--alone", json.dumps([settings, began, ended]), "-"])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return float(subprocess.run(command, check=True, env=environment, **pipes).stdout)


def train_alone(settings: dict[str, Any], began: int, ended: int) -> None:
    """Make the optimizer steps of `steps_alone` in this process, and print their seconds."""
    from gpt2.device import keep_freed_memory

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
    parser.add_argument("dataset", help="folder of a prepared dataset")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--block_size", type=int, default=64)
    parser.add_argument("--interval", type=int, default=10, help="number of optimizer steps between checkpoints")
    parser.add_argument("--checkpoints", type=int, default=3, help="number of measured checkpoints per run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=WAYS, help="ways to write checkpoints to compare"
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        train_alone(*json.loads(arguments.alone))
        return

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this benchmark runs two programs at the same time, so it needs at least two cores")
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
            figures = f"{done.seconds:.1f} s, the steps alone {alone:.1f} s, waited {done.waited} s"
            print(f"round {number + 1}: {name}: {figures}", file=sys.stderr, flush=True)

    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    steps = arguments.interval * arguments.checkpoints
    print(f"checkpoints of {size / 1e6:,.0f} MB, every {arguments.interval} steps, {steps} steps; {machine}\n")
    print("| | seconds, median (spread) | relative to the steps alone (spread) | wait per checkpoint (spread) |")
    print("|---|---|---|---|")
    for name in arguments.ways:
        print(f"| {name} | {spread(seconds[name], '.1f')} | {spread(ratios[name], '.3f')} ", end="")
        print(f"| {spread(waited[name], '.2f')} s |" if waited[name] else "| |")


def spread(values: list[float], form: str) -> str:
    """Return the median, the minimum and the maximum as text."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
