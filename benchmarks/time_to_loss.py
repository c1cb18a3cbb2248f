"""Wall time and tokens of whole training runs, start to finish: recipes beside each other and nanoGPT, in turns.

    python benchmarks/time_to_loss.py --nanogpt ~/nanoGPT --dataset data/shakespeare_char
    python benchmarks/time_to_loss.py --dataset data/docs --recipes tinystories tinystories_fast

nanoGPT trains its small model of Shakespeare's characters as its README says for a CPU, from its own folder, where
data/shakespeare_char is prepared. The clock runs from the start of each process to its end. The loss is measured
afterwards, over the whole validation split: of ours as the run ended, with another seed in every round; of nanoGPT's
the checkpoint it kept, its best by estimate, always with its own seed. Ratios are to the first, in the same round,
and their medians shown.
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
from peers import commit

from gpt2.runlog.records import read_log

NANOGPT = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)
NANOGPT_TOKENS = 2000 * 12 * 64


@dataclass(frozen=True)
class Whole:
    """A run from start to finish."""

    seconds: float
    tokens: int
    loss: float


def timed(command: list[str], folder: Path | None = None) -> tuple[float, str]:
    """Seconds that a program takes, and what it prints."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout


def nanogpt(folder: Path, dataset: str) -> Whole:
    """A run of nanoGPT's train.py."""
    with tempfile.TemporaryDirectory() as out:
        seconds, _ = timed([sys.executable, "train.py", *NANOGPT.split(), f"--out_dir={out}"], folder)
        return Whole(seconds, NANOGPT_TOKENS, loss(Path(out, "ckpt.pt"), dataset))


def ours(recipe: list[str], dataset: str, seed: int) -> Whole:
    """A run of `gpt2 train`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        flags = [*recipe, f"--dataset={dataset}", f"--out_dir={out}", f"--seed={seed}"]
        seconds, _ = timed([sys.executable, "-m", "gpt2", "train", *flags])
        tokens = max(record["tokens"] for record in read_log(out) if record["event"] == "train")
        return Whole(seconds, tokens, loss(max(out.glob("checkpoints/step_*")), dataset))


def loss(model: Path, dataset: str) -> float:
    """Of a model, over the whole validation split."""
    _, said = timed([sys.executable, "-m", "gpt2", "eval", "loss", str(model), dataset, "--json"])
    return json.loads(said)["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, its data prepared")
    parser.add_argument("--dataset", default="shakespeare_char", help="of ours, with the same text")
    parser.add_argument("--recipes", nargs="+", default=["shakespeare_char_cpu_fast"], help="each with flags, quoted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    names = (["nanoGPT"] if options.nanogpt else []) + options.recipes
    runs: dict[str, list[Whole]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name, done in runs.items():
            is_nanogpt = options.nanogpt and name == "nanoGPT"
            done.append(
                nanogpt(options.nanogpt, options.dataset)
                if is_nanogpt
                else ours(name.split(), options.dataset, 1337 + number)
            )
            said = f"{done[-1].seconds:.1f} s, {done[-1].tokens:,} tokens, loss {done[-1].loss:.4f}"
            print(f"round {number + 1}: {name}: {said}", file=sys.stderr, flush=True)
    about = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}; {options.rounds} rounds"
    about += f"; nanoGPT {commit(options.nanogpt)}" if options.nanogpt else ""
    print(
        f"{about}\n\n| | seconds, median (spread) | to the first | tokens | to the first | validation loss (spread) |"
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
