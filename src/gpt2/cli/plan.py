"""`gpt2 plan`."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.allocator import keep_freed_memory
from gpt2.runlog.console import duration, note
from gpt2.training.config import TrainConfig


def plan(
    recipe: str | None = None,
    /,
    *,
    nproc: int = 1,
    probe: bool = True,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """What a run will take, before it starts: memory, time, disk, and the largest micro-batch that fits.

    Takes a recipe and flags as `gpt2 train` does. The tokens per step stay as they are.

    Parameters
    ----------
    recipe
        A built-in name (shakespeare_char, gpt2, …), a TOML file or a nanoGPT config file.
    nproc
        Processes that are to share the work, each on a device like this one.
    probe
        Train a few updates on random tokens to see how fast it is. --no-probe is arithmetic alone.
    json_
        Print one JSON object instead of lines.
    """
    from gpt2.bench.plan import plan as make
    from gpt2.errors import UserError

    if nproc < 1:
        raise UserError(f"nproc is {nproc}; it must be at least 1")
    keep_freed_memory()
    found = make(config, nproc, probe, note)
    chosen, memory = found.config, asdict(found.memory)
    flags = {
        "batch_size": chosen.batch_size,
        "gradient_accumulation_steps": chosen.accumulation,
    }
    if json_:
        figures = {
            "parameters": found.parameters,
            "memory": memory | {"total": found.memory.total},
            "available": found.available,
            "tokens": found.tokens,
            "flops": found.flops,
            "checkpoint": found.checkpoint,
            "tokens_per_second": found.tokens_per_second,
            "seconds": found.seconds,
        }
        print(json.dumps(flags | figures))
        return
    parts = " · ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items() if size)
    print(f"model     {found.parameters:,} parameters")
    print(f"update    {chosen.tokens_per_step:,} tokens: " + " ".join(f"--{k}={v}" for k, v in flags.items()))
    print(f"memory    {found.memory.total / 1e9:.2f} GB of {found.available / 1e9:.2f} GB free ({parts})")
    print(f"training  {found.tokens:,} tokens, {found.flops:.3g} FLOP")
    if found.tokens_per_second is not None and found.seconds is not None:
        rate = f"{found.tokens_per_second:,.0f} tokens/s"
        print(f"time      {duration(found.seconds)} at {rate}, evaluations and communication aside")
    kept = f"{found.kept} at a time, {found.kept * found.checkpoint / 1e9:.2f} GB" if found.kept else "all are kept"
    print(f"disk      {found.checkpoint / 1e9:.2f} GB a checkpoint, {kept}")
