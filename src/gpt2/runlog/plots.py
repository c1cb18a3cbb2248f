"""Curves of runs as a picture."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.files import write_bytes
from gpt2.runlog.curves import (
    AXES,
    Records,
    counts,
    extremes,
    load,
    name_of,
    place,
    series,
    settings_of,
    smooth,
    smoothing_for,
    thin,
    time_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BUCKETS = 1000
"""Of a curve that is drawn thinned: more than a picture has columns to show."""
TITLES = {
    "loss": "loss (nats per token)",
    "hellaswag": "HellaSwag",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_second": "tokens per second",
}


def check_name(out: Path) -> None:
    """Raise UserError where a picture's name does not say a format."""
    if out.suffix not in FORMATS:
        raise UserError(f"cannot write {out}: the picture's name must end in {', '.join(FORMATS)}")


def plot_runs(runs: Sequence[Path], out: Path, axis: str = "steps", smoothing: float | None = None) -> None:
    """Draw the curves of `runs` over one of AXES into the picture `out`.

    smoothing: weight of what came before in the moving average of the training loss, 0 for none; None chooses by
    length. Raises UserError for a run without records, or without those the axis takes, and for a picture format
    that is not one of FORMATS.
    """
    check_name(out)
    if smoothing is not None and not 0 <= smoothing < 1:
        raise UserError(f"smooth is {smoothing}; it must be at least 0 and below 1")
    logs = [(run, load(run)) for run in runs]
    longest = 0.0
    for run, records in logs:
        if not any(r["event"] in ("train", "eval") for r in records):
            raise UserError(f"{run} has no training or evaluation records yet; nothing to draw")
        longest = max(longest, place(records, axis, settings_of(run), str(run))(records[-1]["step"]))
    unit, named = time_unit(longest) if axis == "time" else (1, "")

    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    has_hellaswag = any(series(records, "eval", "acc_norm")[0] for _, records in logs)
    panels = figure.subplot_mosaic(
        [["loss", "loss", "hellaswag" if has_hellaswag else "loss"], ["lr", "grad_norm", "tokens_per_second"]],
        height_ratios=[3, 2],
    )
    for number, (run, records) in enumerate(logs):
        at = place(records, axis, settings_of(run), str(run))
        _draw(panels, name_of(run), records, f"C{number}", lambda step, at=at: at(step) / unit, smoothing)
    for key, panel in panels.items():
        panel.set_title(TITLES[key])
        panel.set_xlabel(f"{named} of training" if named else AXES[axis])
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, frameon=False)
    panels["grad_norm"].set_yscale("log")
    panels["tokens_per_second"].set_ylim(bottom=0)
    save(figure, out)


def save(figure: "Figure", out: Path) -> None:
    """Write a figure as the picture `out`, in the format that its suffix names. Raises WriteError."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format=out.suffix[1:])
    write_bytes(out, picture.getvalue())


def _draw(
    panels: "dict[str, Axes]",
    name: str,
    records: Records,
    color: str,
    x: Callable[[int], float],
    smoothing: float | None,
) -> None:
    """The curves of one run into the panels, each step at its place `x`."""
    steps, losses = series(records, "train", "loss")
    if steps:
        sizes = counts(records, "loss")
        weight = smoothing_for(sum(sizes)) if smoothing is None else smoothing
        raw_steps, raw = extremes(records, "loss")
        panels["loss"].plot(
            *thin([x(step) for step in raw_steps], raw, BUCKETS), color=color, alpha=0.2, linewidth=0.8
        )
        label = f"{name} train (smoothed)" if weight else f"{name} train"
        xs, smoothed = [x(step) for step in steps], smooth(losses, weight, sizes)
        panels["loss"].plot(*thin(xs, smoothed, BUCKETS), color=color, linewidth=1.2, label=label)
    steps, losses = series(records, "eval", "val_loss")
    if steps:
        label = f"{name} val (last {losses[-1]:.4f}, best {min(losses):.4f})"
        xs = [x(step) for step in steps]
        panels["loss"].plot(xs, losses, color=color, marker="o", markersize=4, linestyle="--", label=label)
    for key in ("lr", "grad_norm", "tokens_per_second"):
        steps, values = extremes(records, key)
        panels[key].plot(*thin([x(step) for step in steps], values, BUCKETS), color=color, linewidth=1.0, label=name)
    for key, line in (("acc", ":"), ("acc_norm", "-")):
        steps, values = series(records, "eval", key)
        if steps:
            label = f"{name} {key} (last {values[-1]:.4f})"
            xs = [x(step) for step in steps]
            panels["hellaswag"].plot(xs, values, color=color, linestyle=line, marker=".", label=label)
