"""`gpt2 sweep`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import OUT, JsonFlag, RecipeArg, SettingsArg
from gpt2.errors import EXIT_STOPPED
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig
from gpt2.training.setting import OUTPUT, RUN, Bounds, within

HALVING = Bounds(lambda value: value == 0 or 2 <= value <= 1000, "be 0, or from 2 to 1000")


def sweep(
    recipe: RecipeArg = None,
    /,
    *,
    grid: Annotated[tuple[str, ...], RUN, Parameter(negative=())] = (),
    out: Annotated[Path, RUN, OUTPUT, OUT],
    seeds: Annotated[int, RUN, within(1, 1000)] = 1,
    halving: Annotated[int, RUN, HALVING] = 0,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> int:
    """Train a recipe with every combination of some settings, and show which differences are more than noise.

    Takes the same recipe and flags as `gpt2 train`. Every run is a run folder below --out. The same command continues
    a sweep that was stopped: it skips finished runs, and resumes the one that was interrupted. A run that fails is a
    row of the table. The exit status is 75 if a signal stopped the sweep.

    Parameters
    ----------
    grid
        A setting and the values to try, such as learning_rate=1e-3,3e-3. Give it once for each setting to vary.
    out
        Folder of the sweep.
    seeds
        Number of seeds to train each combination with: the setting seed, and those that follow it.
    halving
        Successive halving: all combinations train for a part of their steps, and the best one in this number goes on
        with this number times the steps, until one is left. 0 trains all combinations to their end.
    """
    from gpt2.bench.sweep import Sweep, parse_grid, run_sweep
    from gpt2.bench.sweep_console import SweepConsole
    from gpt2.bench.sweep_table import described, draw, rows
    from gpt2.device import keep_freed_memory

    keep_freed_memory()
    asked = Sweep(config, parse_grid(grid), [config.seed + i for i in range(seeds)], out, halving)
    with SweepConsole() as console:
        found = run_sweep(asked, console)
    if found is None:
        note("the sweep is stopped, and its run is saved; the same command continues it")
        return EXIT_STOPPED
    print(json.dumps(rows(asked, found)) if json_ else described(asked, found))
    if picture := draw(asked, found):
        note(f"the curves are in {picture}; one page: gpt2 report {shlex.quote(str(out))}/*/")
    return 0
