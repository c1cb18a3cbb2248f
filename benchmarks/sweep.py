"""Train a recipe with every combination of some settings, and print a table of the losses.

    python benchmarks/sweep.py shakespeare_char_cpu --eval_interval=0 --eval_iters=0 \\
        --optimizer=adamw,muon --learning_rate=1e-3,3e-3 --seed=1,2,3 --table=sweep.md

The flags are those of `gpt2 train`, with commas between the values to try. With --eval_iters=0, the validation loss
is that of the complete split. Combinations that differ only in their seed share a line, with the mean and the spread
of the loss. --table also writes the table to a file. --at_once=2 trains two runs at the same time, each on half of
the cores, which small models use better than all cores. The dataset must be prepared.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def train(recipe: str, settings: dict[str, str], environment: dict[str, str]) -> tuple[float, float]:
    """Train once; return the validation loss at the end, and the seconds from start to end."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{name}={value}" for name, value in settings.items()]
        began = time.perf_counter()
        command = [sys.executable, "-m", "gpt2", "train", recipe, *flags, f"--out_dir={folder}/run", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["val_loss"], seconds


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    recipe, *flags = sys.argv[1:]
    tried = {name: value.split(",") for name, _, value in (flag.removeprefix("--").partition("=") for flag in flags)}
    target = tried.pop("table", [None])[0]
    seeds = tried.pop("seed", ["1337"])
    at_once = int(tried.pop("at_once", ["1"])[0])
    varied = [name for name, values in tried.items() if len(values) > 1]
    head = [*varied, "validation loss", "spread", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    print("\n".join(lines), flush=True)
    combinations = [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))} if at_once > 1 else {}
    pool = ThreadPoolExecutor(at_once)
    runs = [[pool.submit(train, recipe, c | {"seed": seed}, threads) for seed in seeds] for c in combinations]
    try:
        for settings, asked in zip(combinations, runs, strict=True):
            losses, seconds = zip(*(run.result() for run in asked), strict=True)
            cells = [settings[name] for name in varied]
            cells += [f"{statistics.fmean(losses):.4f}", f"{max(losses) - min(losses):.4f}"]
            lines.append("| " + " | ".join([*cells, f"{statistics.median(seconds):.1f}"]) + " |")
            print(lines[-1], flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    if target:
        Path(target).write_text(f"`{' '.join(sys.argv)}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
