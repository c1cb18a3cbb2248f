"""Wall time of whole training runs, start to finish: ours beside nanoGPT's train.py, in turns.

    python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT --dataset data/shakespeare_char

nanoGPT trains its small model of Shakespeare's characters as its README says for a CPU, from its own folder, where
data/shakespeare_char is prepared; ours trains a recipe of the same architecture, evaluating as many times. The clock
runs from the start of each process to its end. Ours is then measured over the whole validation split; nanoGPT's loss
is the one it prints, an estimate from 20 batches.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peers import commit

NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)


def timed(command: list[str], folder: Path | None = None) -> tuple[float, str]:
    """Seconds that a program takes, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout


def nanogpt(folder: Path, flags: str) -> tuple[float, float]:
    """Seconds and the last validation loss."""
    with tempfile.TemporaryDirectory() as out:
        seconds, said = timed([sys.executable, "train.py", *flags.split(), f"--out_dir={out}"], folder)
    return seconds, float(re.findall(r"val loss ([\d.]+)", said)[-1])


def ours(recipe: list[str], dataset: str) -> tuple[float, float]:
    """Seconds and the loss over the whole validation split at the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/run"
        command = [sys.executable, "-m", "gpt2"]
        seconds, _ = timed([*command, "train", *recipe, f"--dataset={dataset}", f"--out_dir={out}"])
        last = max(Path(out, "checkpoints").glob("step_*"))
        _, said = timed([*command, "eval", "loss", str(last), dataset, "--json"])
    return seconds, json.loads(said)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT, its data prepared")
    parser.add_argument("--flags", default=NANOGPT, help="of nanoGPT's train.py")
    parser.add_argument("--dataset", default="shakespeare_char", help="of ours: the same text")
    parser.add_argument("--recipes", nargs="+", default=["shakespeare_char_cpu_fast"], help="each with flags, quoted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    runs: dict[str, list[tuple[float, float]]] = {"nanoGPT": [], **{recipe: [] for recipe in options.recipes}}
    for number in range(options.rounds):
        for name, done in runs.items():
            if name == "nanoGPT":
                done.append(nanogpt(options.nanogpt, options.flags))
            else:
                done.append(ours(name.split(), options.dataset))
            print(
                f"round {number + 1}: {name}: {done[-1][0]:.1f} s, loss {done[-1][1]:.4f}",
                file=sys.stderr,
                flush=True,
            )
    base = [seconds for seconds, _ in runs["nanoGPT"]]
    table = {}
    for name, done in runs.items():
        seconds, losses = zip(*done, strict=True)
        table[name] = {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "ratio": statistics.median(s / b for s, b in zip(seconds, base, strict=True)),
            "loss": statistics.fmean(losses),
            "highest_loss": max(losses),
        }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    print(f"{machine}; {options.rounds} rounds; nanoGPT {commit(options.nanogpt)}\n")
    print("| | seconds, median (spread) | of nanoGPT's time in the same round | validation loss, mean (highest) |")
    print("|---|---|---|---|")
    for name, row in table.items():
        seconds = f"{row['seconds']:.1f} ({row['fastest']:.1f}–{row['slowest']:.1f})"
        print(f"| {name} | {seconds} | {row['ratio']:.2f}× | {row['loss']:.4f} ({row['highest_loss']:.4f}) |")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
