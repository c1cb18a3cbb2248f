"""Compare the time, the tokens and the final loss of complete training runs of recipes and of nanoGPT.

    python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT --dataset data/shakespeare_char
    python benchmarks/time_to_loss.py --dataset data/docs --recipes tinystories tinystories_fast

In each round the programs run one after the other. nanoGPT trains its small model of the characters of Shakespeare as
its README describes for a CPU. It runs in its own folder, in which data/shakespeare_char must be prepared. The time
is from the start of each process to its end. The loss is measured afterwards over the complete validation split. For
recipes it is that of the weights at the end of the run, with another seed in every round. For nanoGPT it is that of
the checkpoint with the best estimated loss, always with the same seed. Ratios are relative to the first program in
the same round; the table shows their medians.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from other_projects import commit

from gpt2.runlog.records import read_log

NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
NANOGPT_TOKENS = 2000 * 12 * 64


@dataclass(frozen=True)
class CompleteRun:
    """The figures of a run from its start to its end."""

    seconds: float
    """Wall time of the process."""
    tokens: int
    """Number of training tokens."""
    loss: float
    """Loss over the complete validation split, in nats per token."""


def timed(command: list[str], folder: Path | None = None) -> tuple[float, str]:
    """Run a program; return its seconds, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout


def nanogpt(folder: Path, dataset: str) -> CompleteRun:
    """Run nanoGPT's train.py."""
    with tempfile.TemporaryDirectory() as out:
        seconds, _ = timed([sys.executable, "train.py", *NANOGPT.split(), f"--out_dir={out}"], folder)
        return CompleteRun(seconds, NANOGPT_TOKENS, loss(Path(out, "ckpt.pt"), dataset))


def toolkit(recipe: list[str], dataset: str, seed: int) -> CompleteRun:
    """Run `gpt2 train`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        flags = [*recipe, f"--dataset={dataset}", f"--out_dir={out}", f"--seed={seed}"]
        seconds, _ = timed([sys.executable, "-m", "gpt2", "train", *flags])
        tokens = max(record["tokens"] for record in read_log(out) if record["event"] == "train")
        return CompleteRun(seconds, tokens, loss(max(out.glob("checkpoints/step_*")), dataset))


def loss(model: Path, dataset: str) -> float:
    """Return the loss of a model over the complete validation split, in nats per token."""
    _, output = timed([sys.executable, "-m", "gpt2", "eval", "loss", str(model), dataset, "--json"])
    return json.loads(output)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT with prepared data")
    parser.add_argument("--dataset", default="shakespeare_char", help="prepared dataset of gpt2 with the same text")
    parser.add_argument(
        "--recipes", nargs="+", default=["shakespeare_char_cpu_fast"], help="recipes with flags, each quoted"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()

    names = (["nanoGPT"] if options.nanogpt else []) + options.recipes
    runs: dict[str, list[CompleteRun]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name, done in runs.items():
            is_nanogpt = options.nanogpt and name == "nanoGPT"
            done.append(
                nanogpt(options.nanogpt, options.dataset)
                if is_nanogpt
                else toolkit(name.split(), options.dataset, 1337 + number)
            )
            figures = f"{done[-1].seconds:.1f} s, {done[-1].tokens:,} tokens, loss {done[-1].loss:.4f}"
            print(f"round {number + 1}: {name}: {figures}", file=sys.stderr, flush=True)
    about = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}; {options.rounds} rounds"
    about += f"; nanoGPT {commit(options.nanogpt)}" if options.nanogpt else ""
    print(
        f"{about}\n\n| | seconds, median (spread) | relative to the first | tokens | relative to the first "
        "| validation loss (spread) |"
    )
    print("|---|---|---|---|---|---|")
    base = runs[names[0]]
    for name, done in runs.items():
        seconds, losses = sorted(run.seconds for run in done), sorted(run.loss for run in done)
        ratio = statistics.median(run.seconds / first.seconds for run, first in zip(done, base, strict=True))
        print(
            f"| {name} | {statistics.median(seconds):.1f} ({seconds[0]:.1f}–{seconds[-1]:.1f}) | {ratio:.2f}× "
            f"| {done[0].tokens:,} | {done[0].tokens / base[0].tokens:.2f}× "
            f"| {statistics.fmean(losses):.4f} ({losses[0]:.4f}–{losses[-1]:.4f}) |"
        )
    if options.json:
        results = {name: [asdict(run) for run in done] for name, done in runs.items()}
        options.json.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
