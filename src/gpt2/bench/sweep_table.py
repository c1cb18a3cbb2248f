"""What a sweep found: a table from the best combination to the worst, which shows what may be noise."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.bench.sweep import Combination, Sweep, run_name, shown
from gpt2.errors import UserError
from gpt2.reporting.picture import plot_runs
from gpt2.runlog.console import duration

PLOT = "plot.png"
"""Name of the picture of a sweep."""
MOST_CURVES = 6
"""Largest number of runs in the picture."""
BEST, ALIKE = "best", "not distinguishable from the best"


def ranked(found: Sequence[Combination]) -> list[Combination]:
    """Return the combinations from the best to the worst. Those that halving stopped come after those it did not."""
    return sorted(found, key=lambda c: (bool(c.problem), -len(c.rungs), c.mean))


def is_within_noise(a: tuple[float, float | None], b: tuple[float, float | None]) -> bool:
    """Return whether two means differ by less than the larger spread of their seeds.

    a, b: mean and spread, which is None where it is not known.
    """
    spreads = [spread for _, spread in (a, b) if spread is not None]
    return bool(spreads) and abs(a[0] - b[0]) < max(spreads)


def remark(combination: Combination, found: Sequence[Combination]) -> str:
    """Return what is to be said about a combination among all that were found."""
    best, rung = ranked(found)[0], len(combination.rungs)
    if combination.problem:
        return f"failed: {combination.problem}"
    if rung == len(best.rungs):
        here, top = combination.rungs[-1], best.rungs[-1]
        if combination is best:
            return BEST if len(found) > 1 else ""
        return ALIKE if is_within_noise(here, top) else ""
    went_on = [c.rungs[rung - 1] for c in found if len(c.rungs) > rung and not c.problem]
    is_close = any(is_within_noise(combination.rungs[-1], other) for other in went_on)
    close = ", not distinguishable there from one that went on" if is_close else ""
    return f"stopped at step {combination.trained}{close}"


def rows(sweep: Sweep, found: Sequence[Combination]) -> list[dict[str, Any]]:
    """Return one entry for each combination, from the best to the worst, as JSON holds it."""
    return [
        {
            "settings": c.values,
            "val_loss": c.mean if math.isfinite(c.mean) else None,
            "spread": c.spread,
            "steps": c.trained,
            "seconds": sum(c.seconds.values()) / len(c.seconds) if c.seconds else None,
            "val_loss_by_seed": {str(seed): loss for seed, loss in c.losses.items()},
            "runs": [str(sweep.out / run_name(c.values, seed)) for seed in sweep.seeds],
            "remark": remark(c, found),
        }
        for c in ranked(found)
    ]


def described(sweep: Sweep, found: Sequence[Combination]) -> str:
    """Return the table as text, and below it what can be concluded."""
    entries = rows(sweep, found)
    has_spread = any(entry["spread"] is not None for entry in entries)
    head = [*sweep.grid, "val loss", *["spread"] * has_spread, "steps", "time", ""]
    cells = [
        [
            *map(shown, entry["settings"].values()),
            "–" if entry["val_loss"] is None else f"{entry['val_loss']:.4f}",
            *["–" if entry["spread"] is None else f"{entry['spread']:.4f}"] * has_spread,
            f"{entry['steps']:,}",
            "–" if entry["seconds"] is None else duration(entry["seconds"]),
            entry["remark"].split(";")[0],
        ]
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *cells)]
    return "\n".join([*lines, "", *conclusions(sweep, found)])


def conclusions(sweep: Sweep, found: Sequence[Combination]) -> list[str]:
    """Return sentences about the best combination, about noise, and about a best value at the end of its range."""
    best = ranked(found)[0]
    if best.problem:
        return ["All combinations failed."]
    flags = " ".join(f"--{name}={shown(value)}" for name, value in best.values.items())
    if len(found) == 1:
        if best.spread is None:
            return [f"The validation loss of {flags} is {best.mean:.4f}, with one seed."]
        seeds = f"{len(best.losses)} seeds, with a spread of {best.spread:.4f}"
        return [f"The mean validation loss of {flags} is {best.mean:.4f} over {seeds}. The spread is max − min."]
    lines = [f"The lowest mean validation loss is {best.mean:.4f}, of {flags}."]
    if len(sweep.seeds) == 1:
        lines.append("One seed does not show how large the noise is: small differences mean nothing. Give --seeds=3.")
    else:
        alike = sum(remark(c, found) == ALIKE for c in found)
        others = "1 other combination is" if alike == 1 else f"{alike or 'No'} other combinations are"
        lines.append(f"{others} within the spread of {len(sweep.seeds)} seeds of it. The spread is max − min.")
    for name, values in sweep.grid.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) > 1 and len(numbers) == len(values) and best.values[name] in (min(values), max(values)):
            which = "largest" if best.values[name] == max(values) else "smallest"
            lines.append(
                f"{name}={best.values[name]} is the {which} that was tried; a {which[:-3]}er one may be better."
            )
    return lines


def draw(sweep: Sweep, found: Sequence[Combination]) -> Path | None:
    """Draw the curves of the best combinations, one run of each; return the picture, or None without any curve."""
    runs = [sweep.out / run_name(c.values, sweep.seeds[0]) for c in ranked(found)[:MOST_CURVES] if not c.problem]
    try:
        plot_runs(runs, sweep.out / PLOT)
    except UserError:  # no run has trained
        return None
    return sweep.out / PLOT
