"""Measure how long the views of a text take: losses, attention and the logit lens, and a grid of patching.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/inside.py MODEL --threads 2

The text has random tokens, on which the time does not depend. Each time is the median of several runs after one that
does not count. The processor time is that of all threads in the best run; other processes hardly change it, and it
shows what an undisturbed machine would need. OMP_WAIT_POLICY keeps it free of the time that threads wait for each
other. The arithmetic of the products is computed from the sizes, and the rate at which this machine computes
a large product in float32 says how long they take at least.
"""

import argparse
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpt2.accounting import num_params
from gpt2.bench.sample import open_network
from gpt2.errors import UserError
from gpt2.inside.attention import traced_weights
from gpt2.inside.forward import trace
from gpt2.inside.patching import patch
from gpt2.inside.predictions import logit_lens
from gpt2.model import GPT

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, order=True)
class Time:
    """A time has the seconds of a clock, and those that all threads spent on processors."""

    wall: float
    processors: float


def times(work: Callable[[], object], rounds: int) -> list[Time]:
    """Return the times of some runs, the shortest first."""
    work()
    found = []
    for _ in range(rounds):
        wall, processors = time.perf_counter(), time.process_time()
        work()
        found.append(Time(time.perf_counter() - wall, time.process_time() - processors))
    return sorted(found)


def processor() -> str:
    """Return which of the features that matter for matrix products the processor has."""
    try:
        flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return platform.machine()
    return " ".join((platform.machine(), *(name for name in FEATURES if name in flags)))


def views(model: GPT, idx: torch.Tensor) -> None:
    """Compute losses, attention weights and the logit lens of a text, as `gpt2 lens` does."""
    run = trace(model, idx)
    assert logit_lens(model, idx, run=run).last.loss.isfinite().all()
    traced_weights(model, run, len(idx))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="any model, as for gpt2 lens, or random:SIZE, as for gpt2 bench sample")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=256, help="number of tokens of the text")
    parser.add_argument("--positions", type=int, default=32, help="number of patched positions, at its end")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    try:
        model = open_network(arguments.model, torch.device("cpu"), "float32", "none")
    except UserError as error:
        parser.error(str(error))
    config, T = model.config, arguments.tokens
    torch.manual_seed(0)
    idx = torch.randint(config.vocab_size, (T,))
    corrupted = idx.clone()
    corrupted[-arguments.positions :] = torch.randint(config.vocab_size, (arguments.positions,))

    a, b = torch.randn(2, 1024, 1024)
    rate = arguments.threads * 2 * 1024**3 / min(one.processors for one in times(lambda: a @ b, 20))
    blocks = 24 * config.n_layer * config.n_embd**2 * T
    heads = 2 * config.n_layer * config.n_embd * config.vocab_size * T
    print(f"{processor()}, {arguments.threads} threads, PyTorch {torch.__version__}")
    print(
        f"{num_params(config) / 1e6:.0f}M parameters, {T} tokens; products of 1024 × 1024: {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"the products of the views take at least {(blocks + heads) / rate:.2f} s at that rate")
    grid = f"patching, {config.n_layer} layers × {arguments.positions} positions and all heads"
    for name, work in (
        ("losses, attention and logit lens", lambda: views(model, idx)),
        (grid, lambda: patch(model, idx, corrupted, 0, 1)),
    ):
        found = times(work, arguments.rounds)
        wall = statistics.median(one.wall for one in found)
        least = min(one.processors for one in found) / arguments.threads
        spread = f"from {found[0].wall:.2f} to {found[-1].wall:.2f} s"
        print(f"{name}: median {wall:.2f} s, {spread}; processor time per thread {least:.2f} s")


if __name__ == "__main__":
    main()
