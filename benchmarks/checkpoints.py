"""What saving costs a run: with training waiting, beside the training, and not at all.

    python benchmarks/checkpoints.py data/shakespeare --model gpt2 --batch_size 1 --block_size 64

The same updates are trained in each way, as a process of its own, one after the other in each round. The first
checkpoint of a run is left out: its memory and files are new.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gpt2.runlog.records import read_log

WAYS = {
    "no checkpoints": [],
    "training waits": ["--checkpoint_interval={interval}"],
    "beside the training": ["--checkpoint_interval={interval}", "--async_checkpoint"],
}


def measure(arguments: argparse.Namespace, way: list[str], out: Path) -> tuple[float, list[float], int]:
    """Seconds of the updates after the first interval and all between, seconds waited at each checkpoint, bytes."""
    interval = arguments.interval
    subprocess.run(
        [
            *(sys.executable, "-m", "gpt2", "train", f"--dataset={arguments.dataset}", f"--out_dir={out}"),
            *(f"--model={arguments.model}", f"--batch_size={arguments.batch_size}"),
            *(f"--block_size={arguments.block_size}", f"--max_iters={interval * (arguments.checkpoints + 2)}"),
            *("--eval_interval=0", "--eval_iters=1", "--compile=False", "--keep_checkpoints=1"),
            *(flag.format(interval=interval) for flag in way),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    records = read_log(out)
    times = {r["step"]: r["time"] for r in records if r["event"] == "train"}
    waited = [r["seconds"] for r in records if r["event"] == "checkpoint"]
    size = sum(p.stat().st_size for p in out.glob("checkpoints/*/*.safetensors"))
    began, ended = 2 * interval - 1, interval * (arguments.checkpoints + 2) - 1
    return times[ended] - times[began], waited[1:-1], size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a prepared folder")
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--block_size", type=int, default=64)
    parser.add_argument("--interval", type=int, default=10, help="updates between checkpoints")
    parser.add_argument("--checkpoints", type=int, default=3, help="that are measured in a run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

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
    base, wait = statistics.median(seconds["no checkpoints"]), statistics.median(waited["training waits"])
    updates = arguments.interval * arguments.checkpoints
    print(f"checkpoints of {size / 1e6:,.0f} MB, every {arguments.interval} updates, {updates} updates; {machine}\n")
    print("| | seconds for all updates (spread) | to none | waited at a checkpoint (spread) | to waiting |")
    print("|---|---|---|---|---|")
    for name, runs in seconds.items():
        all_of = statistics.median(runs)
        line = f"| {name} | {all_of:.1f} ({min(runs):.1f}–{max(runs):.1f}) | {all_of / base:.2f}× |"
        if waits := waited[name]:
            median = statistics.median(waits)
            line += f" {median:.2f} s ({min(waits):.2f}–{max(waits):.2f}) | {median / wait:.3f} |"
        print(line)
    print(json.dumps({"seconds": seconds, "waited": waited}), file=sys.stderr)


if __name__ == "__main__":
    main()
