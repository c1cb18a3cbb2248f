"""What records, progress and checkpoints cost a run, with training waiting for the disk or not.

    python benchmarks/checkpoints.py data/shakespeare --model gpt2 --batch_size 1 --block_size 64

The same updates are trained in each way, as a process of its own, one after the other in each round; "updates alone"
is the trainer's update again and again, without its loop. The runs believe that they write to a terminal. The first
checkpoint of a run is left out: its memory and files are new.
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
from pathlib import Path
from typing import Any

import torch

from gpt2.cli.allocator import keep_freed_memory
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

ALONE = "updates alone"
WAYS = {
    ALONE: [],
    "no checkpoints": [],
    "training waits": ["--checkpoint_interval={interval}"],
    "beside the training": ["--checkpoint_interval={interval}", "--async_checkpoint"],
}


def measure(arguments: argparse.Namespace, way: list[str], out: Path) -> tuple[float, list[float], int]:
    """Seconds of the updates after the first interval and all between, seconds waited at each checkpoint, bytes."""
    interval = arguments.interval
    settings = {
        "dataset": arguments.dataset,
        "out_dir": str(out),
        "model": arguments.model,
        "batch_size": arguments.batch_size,
        "block_size": arguments.block_size,
        "max_iters": interval * (arguments.checkpoints + 2),
        "eval_interval": 0,
        "eval_iters": 1,
        "compile": False,
        "keep_checkpoints": 1,
    }
    began, ended = 2 * interval - 1, interval * (arguments.checkpoints + 2) - 1
    if way is WAYS[ALONE]:
        return updates_alone(settings, began, ended), [], 0
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "gpt2", "train", *flags, *(flag.format(interval=interval) for flag in way)]
    terminal, its_end = pty.openpty()
    reader = threading.Thread(target=read_all, args=[terminal], daemon=True)
    reader.start()
    subprocess.run(command, check=True, stderr=its_end)
    os.close(its_end)
    reader.join()
    records = read_log(out)
    times = {r["step"]: r["time"] for r in records if r["event"] == "train"}
    waited = [r["seconds"] for r in records if r["event"] == "checkpoint"]
    size = sum(p.stat().st_size for p in out.glob("checkpoints/*/*.safetensors"))
    return times[ended] - times[began], waited[1:-1], size


def read_all(terminal: int) -> None:
    """Read what a terminal shows until nobody writes to it."""
    with contextlib.suppress(OSError):
        while os.read(terminal, 65536):
            pass


def updates_alone(settings: dict[str, Any], began: int, ended: int) -> float:
    """Seconds of the updates after number `began` up to `ended`, in a process that does nothing else."""
    command = [sys.executable, __file__, "--alone", json.dumps([settings, began, ended]), "-"]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


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
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        train_alone(*json.loads(arguments.alone))
        return

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    waited: dict[str, list[float]] = {name: [] for name in WAYS}
    size = 0
    for number in range(arguments.rounds):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                took, waits, size = measure(arguments, way, Path(folder) / "run")
            seconds[name].append(took)
            waited[name] += waits
            print(f"round {number + 1}: {name}: {took:.1f} s, waited {waits}", file=sys.stderr, flush=True)

    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    wait = statistics.median(waited["training waits"])
    updates = arguments.interval * arguments.checkpoints
    print(f"checkpoints of {size / 1e6:,.0f} MB, every {arguments.interval} updates, {updates} updates; {machine}\n")
    head = ("seconds for all updates (spread)", "to the updates alone, in the same round")
    print("| | " + " | ".join([*head, "waited at a checkpoint (spread)", "to waiting"]) + " |")
    print("|---|---|---|---|---|")
    for name, runs in seconds.items():
        ratio = statistics.median(took / alone for took, alone in zip(runs, seconds[ALONE], strict=True))
        line = f"| {name} | {statistics.median(runs):.1f} ({min(runs):.1f}–{max(runs):.1f}) | {ratio:.3f}× |"
        if waits := waited[name]:
            median = statistics.median(waits)
            line += f" {median:.2f} s ({min(waits):.2f}–{max(waits):.2f}) | {median / wait:.3f} |"
        print(line)
    print(json.dumps({"seconds": seconds, "waited": waited}), file=sys.stderr)


if __name__ == "__main__":
    main()
