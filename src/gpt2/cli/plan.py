"""`gpt2 plan`."""

import json
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag, RecipeArg, SettingsArg
from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig
from gpt2.training.setting import PROCESSES, SAMPLES, Bounds, within

SIZE = Bounds(lambda value: 0 < value <= 10**6, "be above 0 and at most 1,000,000")
"""Bounds of gigabytes and of a price."""


def plan(
    recipe: RecipeArg = None,
    /,
    *,
    nproc: Annotated[int, PROCESSES, SAMPLES] = 1,
    gpu: str = "",
    gpus: Annotated[int, within(1, 10**5)] = 1,
    memory: Annotated[float | None, SIZE] = None,
    price: Annotated[float | None, SIZE] = None,
    table: Annotated[bool, Parameter(negative=())] = False,
    probe: bool = True,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> None:
    """Estimate the memory, time and disk space of a run, and find the largest micro-batch that fits.

    Takes the same recipe and flags as `gpt2 train`. The number of tokens in an optimizer step is kept. Without any
    argument, it shows what each model size takes.

    Parameters
    ----------
    nproc
        Number of processes that will share the work, each on a device like the one of this machine.
    gpu
        Plan for this GPU instead of this machine, for example H100. `list` shows the GPUs that are known.
    gpus
        Number of these GPUs.
    memory
        Memory of one of these GPUs in GB, where it differs from the usual.
    price
        Price of one of these GPUs for an hour.
    table
        Show what each model size takes, with 20 training tokens for each parameter.
    probe
        Train a few optimizer steps on random tokens to measure the speed. --no-probe only calculates.
    """
    if not gpu and (gpus != 1 or memory is not None or price is not None):
        raise UserError("--gpus, --memory and --price describe a GPU; name it with --gpu, for example --gpu=H100")
    if gpu and nproc != 1:
        raise UserError("--nproc is the number of processes on this machine; with --gpu, give --gpus instead")
    from gpt2 import gpus as known
    from gpt2.bench import plan_text as text
    from gpt2.bench.plan import estimate, for_gpus, this_machine
    from gpt2.bench.plan import plan as make
    from gpt2.device import keep_freed_memory

    if gpu == "list":
        print(json.dumps(text.gpu_figures()) if json_ else text.gpu_table())
        return
    keep_freed_memory()
    chosen = known.find_gpu(gpu, memory) if gpu else None
    hardware = this_machine(config, nproc) if chosen is None else for_gpus(config, chosen, gpus)
    if table or (recipe is None and config == TrainConfig()):
        from gpt2.bench.presets import preset_figures, preset_table, presets

        found = presets(config, hardware, price)
        print(json.dumps(preset_figures(found)) if json_ else preset_table(found, hardware, price))
        return
    made = make(config, hardware, note)
    if not json_:
        print(text.described(made), flush=True)
    time = estimate(made, note) if probe else None
    if json_:
        print(json.dumps(text.figures(made, time, price)))
    elif time is not None:
        print(text.described_time(made, time, price))
