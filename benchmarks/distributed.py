"""What sharing a model costs and saves: updates a second and memory of every way, beside the arithmetic.

    python benchmarks/distributed.py data/shakespeare --processes 2 --n_layer 6 --n_embd 512

Each way trains the same updates, as processes of its own under torchrun, one way after the other in each round.
Memory is that of the fullest process in one more round: what its tensors take, and its peak during the timed updates
beyond what Python and PyTorch had taken before the run was set up (on a CPU of the resident set, read from /proc; the
C library is told to give back at once what is freed, which takes time).
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gpt2 import accounting, device
from gpt2.accounting import Sharing
from gpt2.distributed.world import joined
from gpt2.model import GPTConfig
from gpt2.optim.optimizers import named_state
from gpt2.training.config import TrainConfig
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, deterministic": {"deterministic": True},
    "ddp, zero_stage=1": {"zero_stage": 1},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, activation_checkpointing": {"parallel": "fsdp", "activation_checkpointing": True},
}
UNTIMED = 3
"""Updates before the clock runs."""


def work(settings: dict[str, Any], updates: int) -> None:
    """One process of one way: trains and prints its figures."""
    config = TrainConfig(**settings)
    with joined(device.pick_device(config.device), config.backend, 600) as world:
        before = peak_bytes()
        run = set_up(config, lambda line: None, world)
        seconds = []
        for number in range(UNTIMED + updates):
            if number == UNTIMED:
                forget_peak()
            began = time.perf_counter()
            train_step(run).loss.item()
            seconds.append(time.perf_counter() - began)
            run.state.step += 1
        figures = {
            "seconds": statistics.median(seconds[UNTIMED:]),
            "parameters": bytes_of(run.model.parameters()),
            "optimizer": bytes_of(t for name, t in named_state(run.optimizers).items() if not name.endswith("/step")),
            "peak": peak_bytes() - before,
            "model": asdict(run.model.config),
        }
        every = world.gather(figures)
        if world.is_main:
            print(json.dumps(every), flush=True)
    os._exit(0)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What this process has of them."""
    here = [cast(Any, t).to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in here)


def peak_bytes() -> int:
    """Most memory that this process has had since the peak was last forgotten."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Give back what set-up has freed, and begin to look for the peak anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(
    settings: dict[str, Any], processes: int, updates: int, environment: dict[str, str]
) -> list[dict[str, Any]]:
    """The figures of all processes of a way, by rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, __file__, "--worker", json.dumps(settings), "--updates", str(updates), "-"],
        env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} | os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def expected(config: GPTConfig, settings: dict[str, Any], processes: int) -> accounting.Memory:
    """The memory that the arithmetic gives."""
    sharing = Sharing(processes, settings.get("parallel", "ddp"), settings.get("zero_stage", 0))
    checkpointing = settings.get("activation_checkpointing", False)
    batch_size = settings["batch_size"]
    return accounting.memory(config, sharing, batch_size, half=False, activation_checkpointing=checkpointing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a prepared folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="that are timed")
    for name, value in (("n_layer", 6), ("n_head", 8), ("n_embd", 512), ("block_size", 128), ("batch_size", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--micro_batches", type=int, default=2, help="of an update, in each process")
    parser.add_argument("--only", nargs="*", help="names of ways")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(json.loads(arguments.worker), arguments.updates)

    n = arguments.processes
    shape = {name: getattr(arguments, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size")}
    with tempfile.TemporaryDirectory() as out:
        settings = {
            **shape,
            "dataset": arguments.dataset,
            "out_dir": out,
            "gradient_accumulation_steps": n * arguments.micro_batches,
            "dtype": "float32",
            "compile": False,
            "pad_vocab": 1,
        }
        ways = {name: settings | way for name, way in WAYS.items() if not arguments.only or name in arguments.only}
        results: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, way in ways.items():
                results[name].append(measure(way, n, arguments.updates, {}))
                print(f"round {number + 1}: {name}: {results[name][-1][0]['seconds']:.3f} s", file=sys.stderr)
        taken = {name: measure(way, n, 2, GIVE_BACK) for name, way in ways.items()}

    config = GPTConfig(**next(iter(results.values()))[0][0]["model"])
    tokens = n * arguments.micro_batches * arguments.batch_size * arguments.block_size
    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    print(f"{accounting.num_params(config):,} parameters, {n} processes, {tokens:,} tokens per step; {machine}\n")
    print("| | tokens/s (spread) | to ddp | parameters: measured, by arithmetic | optimizer | peak |")
    print("|---|---|---|---|---|---|")
    table, base = {}, None
    for name, runs in results.items():
        rates = sorted(tokens / max(process["seconds"] for process in run) for run in runs)
        figures = {kind: max(p[kind] for p in taken[name]) for kind in ("parameters", "optimizer", "peak")}
        arithmetic = expected(config, ways[name], n)
        table[name] = {"tokens_per_second": rates, **figures, "arithmetic": asdict(arithmetic)}
        rate = statistics.median(rates)
        base = base or rate
        pairs = zip(figures.values(), (arithmetic.parameters, arithmetic.optimizer, arithmetic.total), strict=True)
        cells = " | ".join(f"{measured / 1e6:,.1f}, {counted / 1e6:,.1f} MB" for measured, counted in pairs)
        print(f"| {name} | {rate:,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f}) | {rate / base:.2f}× | {cells} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "processes": n, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
