"""Measure what each choice gains or costs in training on this device, one process for each variant.

    python benchmarks/variants.py --device=cuda --seconds=500 --kernels=kernels.txt

Every variant trains the 124M model on random tokens, and is compared with `base`, the project as it is.
`base` runs again at the end: its difference from the first time is the noise. A variant that fails says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VARIANT_SECONDS = 100
"""Largest number of seconds of one variant; compiling takes most of them."""
SMALL = {"n_layer": 1, "n_embd": 64, "n_head": 1, "block_size": 64, "batch_size": 2, "compile": False}


@dataclass(frozen=True)
class Variant:
    """A variant is a change of settings, of environment variables, or of PyTorch or the code before the run."""

    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None


def attention(flash: bool, cudnn: bool) -> None:
    """Allow only some of PyTorch's kernels for attention."""
    import torch

    torch.backends.cuda.enable_flash_sdp(flash)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def inductor(**settings: bool) -> None:
    """Change settings of the compiler."""
    from torch._inductor import config

    for name, value in settings.items():
        assert hasattr(config, name), f"PyTorch has no inductor setting {name}"
        setattr(config, name, value)


def chunks(logits: int, count: int) -> None:
    """Change the size of the chunks of the loss, and their largest number."""
    from gpt2 import chunked_loss

    chunked_loss.MAX_CHUNK_LOGITS["cuda"], chunked_loss.MAX_CHUNKS = logits, count


def activations(recomputes: bool) -> None:
    """Recompute the outputs of GELU and LayerNorm in the backward pass, or keep them."""
    from gpt2.training import setup
    from gpt2.training.compile import recompute_activations

    assert hasattr(setup, "choose_kernels")
    setup.choose_kernels = lambda *_: recompute_activations(recomputes)


VARIANTS = {
    "base": Variant(),
    "flash attention only": Variant(prepare=lambda: attention(flash=True, cudnn=False)),
    "cuDNN attention only": Variant(prepare=lambda: attention(flash=False, cudnn=True)),
    "activations kept": Variant(prepare=lambda: activations(recomputes=False)),
    "activations recomputed": Variant(prepare=lambda: activations(recomputes=True)),
    "all logits at once": Variant(prepare=lambda: chunks(2**40, 1)),
    "half the chunk": Variant(prepare=lambda: chunks(2**27, 32)),
    "expandable segments": Variant(environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
    "not compiled": Variant({"compile": False}),
    "Muon": Variant({"optimizer": "muon"}),
    "deterministic": Variant({"deterministic": True}),
    "tuned tiles": Variant(prepare=lambda: inductor(coordinate_descent_tuning=True)),
    "tuned products": Variant(prepare=lambda: inductor(max_autotune_gemm=True)),
    "base again": Variant(),
}


def measure_variant(name: str, options: argparse.Namespace) -> None:
    """Measure one variant in this process, and print its figures as JSON."""
    from gpt2.bench.train import measure
    from gpt2.training.config import TrainConfig

    variant = VARIANTS[name]
    settings: dict[str, Any] = {"device": options.device, "dtype": "bfloat16", "batch_size": options.batch_size}
    settings |= {"vocab_size": 50257, **(SMALL if options.small else {}), **variant.settings}
    variant.prepare()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json") if options.kernels else None
        config = TrainConfig(**settings)
        figures = measure(config, 2 if options.small else 12, lambda line: print(line, file=sys.stderr), trace)
        if trace is not None:
            options.kernels.write_text(kernel_table(json.loads(trace.read_text())["traceEvents"]))
    print(json.dumps(asdict(figures)))


def kernel_table(events: list[dict[str, Any]]) -> str:
    """Return the kernels of a profile of two optimizer steps: milliseconds, share and number in a step."""
    times, counts = defaultdict(float), defaultdict(int)
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            times[event["name"]] += event["dur"] / 2000
            counts[event["name"]] += 1
    total = sum(times.values()) or 1.0
    lines = [f"{total:.1f} ms of kernels in an optimizer step"]
    for name in sorted(times, key=times.__getitem__, reverse=True)[:60]:
        lines.append(f"{times[name]:8.3f} ms {times[name] / total:6.1%} ×{counts[name] / 2:<6.0f} {name[:150]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=500, help="time for all variants; the last ones are omitted")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--small", action="store_true", help="a tiny model, to rehearse")
    parser.add_argument("--kernels", type=Path, help="file for a table of the kernels of `base`")
    parser.add_argument("--json", type=Path, help="file for the figures as JSON")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        measure_variant(options.variant, options)
        return
    began, results, base = time.perf_counter(), {}, None
    print("| | tokens/s (slowest–fastest) | relative to base | memory | first step | ms of each phase |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.only:
        left = options.seconds - (time.perf_counter() - began)
        if left < 20:
            print(f"| {name} | no time left | | | | |", flush=True)
            continue
        command = [sys.executable, __file__, "--device", options.device, "--batch_size", str(options.batch_size)]
        command += ["--variant", name, *(["--small"] if options.small else [])]
        command += ["--kernels", str(options.kernels)] if options.kernels and name == "base" else []
        environment = os.environ | VARIANTS[name].environment
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=min(left, VARIANT_SECONDS)
            )
        except subprocess.TimeoutExpired as error:
            print(f"| {name} | not ready after {error.timeout:.0f} s | | | | |", flush=True)
            continue
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["?"])[-1][:120]
            print(f"| {name} | failed: {why} | | | | |", flush=True)
            continue
        figures = results[name] = json.loads(done.stdout.splitlines()[-1])
        base = base or figures["tokens_per_second"]
        phases = " · ".join(f"{phase} {1000 * seconds:.1f}" for phase, seconds in figures["seconds"].items())
        print(
            f"| {name} | {figures['tokens_per_second']:,.0f} ({figures['slowest']:,.0f}–{figures['fastest']:,.0f}) "
            f"| {figures['tokens_per_second'] / base:.3f}× | {figures['peak_memory'] / 1e9:.1f} GB "
            f"| {figures['until_first_update']:.0f} s | {phases} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
