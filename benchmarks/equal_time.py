"""Compare the validation losses that nanoGPT and runs of `gpt2 train` reach in the same time, one after the other.

    python benchmarks/equal_time.py --nanogpt ~/nanoGPT --nanogpt_flags "--dataset=docs --max_iters=700" \\
        --runs "gpt2 --dataset=data/docs --max_iters=1000" "gpt2 --dataset=data/docs --optimizer=muon"

--nanogpt_flags are flags of nanoGPT's train.py, which starts in its own folder. --runs are arguments of `gpt2 train`.
The time starts with the process and includes evaluations and checkpoints; the process is stopped when the minutes are
over. Losses are the estimates that the programs print, so all runs should have the same --eval_iters and
--eval_interval. All runs are compared with nanoGPT, or with the first of --runs if nanoGPT is not given.
"""

import argparse
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from other_projects import commit

Curve = list[tuple[float, float]]
"""Pairs of the seconds since the start of the process and the validation loss that it printed then."""


def curve(command: list[str], folder: Path | None, seconds: float) -> Curve:
    """Run a program for at most `seconds` and return the evaluations that it prints. Exits if there are none."""
    began = time.perf_counter()
    found: Curve = []
    last = ""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.send_signal, [signal.SIGINT])
        timer.start()
        for line in process.stdout:
            took = time.perf_counter() - began
            if took <= seconds and (match := re.search(r"val loss ([\d.]+)", line)):
                found.append((took, float(match[1])))
            last = line
        timer.cancel()
    if process.returncode and time.perf_counter() - began < seconds:
        raise SystemExit(f"{shlex.join(command)} failed; it ended with: {last}")
    if not found:
        raise SystemExit(f"{shlex.join(command)} printed no evaluation in {seconds:.0f} s; it ended with: {last}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT with prepared data")
    parser.add_argument("--nanogpt_flags", default="", help="flags of its train.py, quoted")
    parser.add_argument("--runs", nargs="+", required=True, help="arguments of `gpt2 train`, each run quoted")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the curves as JSON")
    options = parser.parse_args()

    commands: dict[str, tuple[list[str], Path | None]] = {}
    if options.nanogpt:
        commands["nanoGPT"] = ["train.py", *shlex.split(options.nanogpt_flags)], options.nanogpt
    for run in options.runs:
        commands[run] = ["-m", "gpt2", "train", *shlex.split(run)], None
    curves: dict[str, list[Curve]] = {name: [] for name in commands}
    for number in range(options.rounds):
        for name, (arguments, folder) in commands.items():
            with tempfile.TemporaryDirectory() as out:
                command = [sys.executable, *arguments, f"--out_dir={out}/run"]
                curves[name].append(curve(command, folder, 60 * options.minutes))
            took, loss = curves[name][-1][-1]
            print(f"round {number + 1}: {name}: {loss:.4f} after {took:.0f} s", file=sys.stderr, flush=True)

    about = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    if torch.cuda.is_available():
        about += f", {torch.cuda.get_device_name()}"
    about += f"; {options.minutes:g} minutes, {options.rounds} rounds"
    about += f"; nanoGPT {commit(options.nanogpt)}" if options.nanogpt else ""
    base = curves[next(iter(curves))]
    print(
        f"{about}\n\n| | validation loss at the end (spread) | time to the first's loss | share of the first's time |"
    )
    print("|---|---|---|---|")
    for name, rounds in curves.items():
        losses = [points[-1][1] for points in rounds]
        reached = [
            next((took for took, loss in points if loss <= first[-1][1]), float("inf"))
            for points, first in zip(rounds, base, strict=True)
        ]
        share = statistics.median(took / first[-1][0] for took, first in zip(reached, base, strict=True))
        print(
            f"| {name} | {statistics.median(losses):.4f} ({min(losses):.4f}–{max(losses):.4f}) "
            f"| {statistics.median(reached):.0f} s | {share:.2f}× |"
        )
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
