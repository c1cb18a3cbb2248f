"""Measure the speed and the memory of every way to share a model between processes, and compare with the arithmetic.

    python benchmarks/distributed.py data/shakespeare --processes 2 --n_layer 6 --n_embd 512

Every way makes the same optimizer steps, in processes of its own under torchrun. In each round, the ways run one
after the other. Memory is measured in one more round, in the process that uses most: the bytes of its tensors, and
its peak during the timed steps minus the memory that Python and PyTorch used before the run was set up. On a CPU the
peak is that of the resident set, from /proc. The C library then returns freed memory to the system at once, which
costs time.
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
"""Number of optimizer steps before the timed ones."""


def work(settings: dict[str, Any], steps: int) -> None:
    """Train as one process of one way; the main process prints the figures of all."""
    config = TrainConfig(**settings)
    with joined(device.pick_device(config.device), config.backend, 600) as world:
        before = peak_bytes()
        run = set_up(config, lambda line: None, world)
        seconds = []
        for number in range(UNTIMED + steps):
            if number == UNTIMED:
                reset_peak()
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
    """Return the number of bytes of the tensors in this process; of sharded ones, those of its shards."""
    local = [cast(Any, t).to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes since the last `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Return freed memory to the system, and start a new measurement of the peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment variables with which glibc returns freed memory to the system at once."""


def measure(
    settings: dict[str, Any], processes: int, steps: int, environment: dict[str, str]
) -> list[dict[str, Any]]:
    """Run one way under torchrun, and return the figures of all its processes, by rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, __file__, "--worker", json.dumps(settings), "--updates", str(steps), "-"],
        env={"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} | os.environ | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def expected(config: GPTConfig, settings: dict[str, Any], processes: int) -> accounting.Memory:
    """Return the memory of a process according to the arithmetic."""
    sharing = Sharing(processes, settings.get("parallel", "ddp"), settings.get("zero_stage", 0))
    checkpointing = settings.get("activation_checkpointing", False)
    batch_size = settings["batch_size"]
    return accounting.memory(config, sharing, batch_size, half=False, activation_checkpointing=checkpointing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of a prepared dataset")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="number of timed optimizer steps")
    for name, value in (("n_layer", 6), ("n_head", 8), ("n_embd", 512), ("block_size", 128), ("batch_size", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--micro_batches", type=int, default=2, help="number of micro-batches per step and process")
    parser.add_argument("--only", nargs="*", help="names of the ways to measure; default: all")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
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
        taken = {name: measure(way, n, 2, RETURN_FREED) for name, way in ways.items()}

    config = GPTConfig(**next(iter(results.values()))[0][0]["model"])
    tokens = n * arguments.micro_batches * arguments.batch_size * arguments.block_size
    machine = f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    print(f"{accounting.num_params(config):,} parameters, {n} processes, {tokens:,} tokens per step; {machine}\n")
    print("| | tokens/s (spread) | relative to ddp | parameters: measured, calculated | optimizer state | peak |")
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
