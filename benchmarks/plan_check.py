"""Compare `gpt2 plan` with runs on this CPU: peak memory, and the time of an optimizer step.

    python benchmarks/plan_check.py --shapes small d6 --dtypes float32 --compile False

Every case makes a plan with `gpt2 plan --json`, then trains with `gpt2 train`, `--runs` times. The peak is that of
the resident set: the median of the runs, with the lowest and the highest, because the gaps that glibc leaves between
tensors differ from run to run. The time is the median of the optimizer steps after the first, and of the runs. A
busy machine is slower in one of the two.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpt2.data.prepare import prepare

SHAPES: dict[str, dict[str, int]] = {
    "small": {"n_layer": 2, "n_head": 4, "n_embd": 128, "block_size": 128, "batch_size": 8, "vocab_size": 257},
    "d6": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 8, "vocab_size": 50257},
    "d12x512": {"n_layer": 12, "n_head": 8, "n_embd": 512, "block_size": 512, "batch_size": 4, "vocab_size": 50257},
    "124M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "batch_size": 1, "vocab_size": 50257},
}


def gpt2(*arguments: str) -> str:
    """Run a command and return its standard output."""
    command = [sys.executable, "-m", "gpt2", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def measured(folder: Path, flags: list[str]) -> tuple[int, float]:
    """Train, and return the peak memory in bytes and the median seconds of an optimizer step."""
    gpt2("train", *flags, f"--out_dir={folder}", "--overwrite")
    lines = (folder / "log.jsonl").read_text().splitlines()
    steps: list[dict[str, Any]] = [values for line in lines if (values := json.loads(line))["event"] == "train"]
    seconds = [sum(step["seconds"].values()) for step in steps[1:]]
    return max(step["memory"] for step in steps), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compile", nargs="+", default=["False", "True"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no_probe", action="store_true", help="compare only the memory")
    given = parser.parse_args()
    print("shape     dtype     compile  planned GB  peak GB (range)       ratio  planned s/step  real s/step  ratio")
    with tempfile.TemporaryDirectory() as temporary:
        folder, rng = Path(temporary), random.Random(0)
        text = folder / "text.txt"
        text.write_text(" ".join("".join(rng.choices("abcdefghijklmnop", k=5)) for _ in range(100_000)))
        dataset = prepare(text, out=folder / "data", tokenizer="byte")
        common = [f"--dataset={dataset}", "--device=cpu", f"--max_iters={given.steps}", "--eval_iters=1"]
        for name in given.shapes:
            for dtype in given.dtypes:
                for compiles in given.compile:
                    flags = [*common, *(f"--{key}={value}" for key, value in SHAPES[name].items())]
                    flags += [f"--dtype={dtype}", f"--compile={compiles}"]
                    options = ["--no-probe"] if given.no_probe else []
                    plan = json.loads(gpt2("plan", *flags, "--json", *options))
                    runs = [measured(folder / "run", flags) for _ in range(given.runs)]
                    peaks = [peak for peak, _ in runs]
                    peak, seconds = statistics.median(peaks), statistics.median(seconds for _, seconds in runs)
                    planned = plan["memory"]["total"]
                    line = f"{name:<9} {dtype:<9} {compiles:<7} {planned / 1e9:>11.2f} {peak / 1e9:>8.2f}"
                    line += f" ({min(peaks) / 1e9:.2f} to {max(peaks) / 1e9:.2f}) {planned / peak:>6.2f}"
                    if plan["time"] is not None:
                        step = plan["tokens_per_step"] / plan["time"]["tokens_per_second"][0]
                        line += f" {step:>15.2f} {seconds:>12.2f} {step / seconds:>6.2f}"
                    print(line, flush=True)


if __name__ == "__main__":
    main()
