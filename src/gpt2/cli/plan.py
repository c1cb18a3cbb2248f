"""`gpt2 plan`."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from gpt2.cli.arguments import JsonFlag, RecipeArg, SettingsArg
from gpt2.runlog.console import duration, note
from gpt2.training.config import TrainConfig
from gpt2.training.setting import PROCESSES, SAMPLES

if TYPE_CHECKING:
    from gpt2.bench.plan import Plan


def plan(
    recipe: RecipeArg = None,
    /,
    *,
    nproc: Annotated[int, PROCESSES, SAMPLES] = 1,
    probe: bool = True,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> None:
    """Estimate the memory, time and disk space of a run, and find the largest micro-batch that fits.

    Takes the same recipe and flags as `gpt2 train`. The number of tokens in an optimizer step is kept.

    Parameters
    ----------
    nproc
        Number of processes that will share the work, each on a device like the one of this machine.
    probe
        Train a few optimizer steps on random tokens to measure the speed. --no-probe only calculates.
    """
    from gpt2.bench.plan import plan as make
    from gpt2.device import keep_freed_memory

    keep_freed_memory()
    found = make(config, nproc, probe, note)
    print(json.dumps(figures(found)) if json_ else described(found))


def flags(found: "Plan") -> dict[str, int]:
    """Return the flags of `gpt2 train` that the plan chooses."""
    return {
        "batch_size": found.config.batch_size,
        "gradient_accumulation_steps": found.config.accumulation,
    }


def figures(found: "Plan") -> dict[str, Any]:
    """Return the plan as a JSON object."""
    return flags(found) | {
        "parameters": found.parameters,
        "memory": asdict(found.memory) | {"total": found.memory.total},
        "available": found.available,
        "tokens": found.tokens,
        "flops": found.flops,
        "checkpoint": found.checkpoint,
        "tokens_per_second": found.tokens_per_second,
        "seconds": found.seconds,
    }


def described(found: "Plan") -> str:
    """Return the plan as lines of text."""
    sizes = " · ".join(f"{name} {size / 1e9:.2f}" for name, size in asdict(found.memory).items() if size)
    chosen = " ".join(f"--{name}={value}" for name, value in flags(found).items())
    kept = f"at most {found.kept}, {found.kept * found.checkpoint / 1e9:.2f} GB" if found.kept else "all are kept"
    lines = [
        f"model     {found.parameters:,} parameters",
        f"step      {found.config.tokens_per_step:,} tokens: {chosen}",
        f"memory    {found.memory.total / 1e9:.2f} GB of {found.available / 1e9:.2f} GB free ({sizes})",
        f"training  {found.tokens:,} tokens, {found.flops:.3g} FLOP",
        f"disk      {found.checkpoint / 1e9:.2f} GB per checkpoint, {kept}",
    ]
    if found.tokens_per_second is not None and found.seconds is not None:
        rate = f"{found.tokens_per_second:,.0f} tokens/s"
        lines.insert(-1, f"time      {duration(found.seconds)} at {rate}, without evaluations and communication")
    return "\n".join(lines)
