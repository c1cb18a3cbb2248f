"""Curves of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.files import publish
from gpt2.runlog.records import read_log

FORMATS = (".png", ".svg", ".pdf")


def series(records: list[dict[str, Any]], event: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key` in the records of one kind of event."""
    points = [(r["step"], r[key]) for r in records if r["event"] == event and r.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, section 3)."""
    result, average = [], 0.0
    for i, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**i))
    return result


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Draw loss, learning rate, gradient norm and throughput of `runs` into the picture `out`.

    Raises UserError for a run without records and for a picture format that is not one of FORMATS.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"cannot write {out}: the picture's name must end in {', '.join(FORMATS)}")
    logs = [(run, read_log(run)) for run in runs]
    for run, records in logs:
        if not any(r["event"] in ("train", "eval") for r in records):
            raise UserError(f"{run} has no training or evaluation records yet; nothing to draw")

    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 2)
    loss_axis, lr_axis, norm_axis, speed_axis = axes.flat
    for number, (run, records) in enumerate(logs):
        color = f"C{number}"
        name = (run if run.is_dir() else run.parent).resolve().name
        steps, losses = series(records, "train", "loss")
        if steps:
            loss_axis.plot(steps, losses, color=color, alpha=0.2, linewidth=0.8)
            smoothed = smooth(losses, 0.95 if len(losses) > 200 else 0.6)
            loss_axis.plot(steps, smoothed, color=color, linewidth=1.2, label=f"{name} train (smoothed)")
        steps, losses = series(records, "eval", "val_loss")
        if steps:
            label = f"{name} val (last {losses[-1]:.4f}, best {min(losses):.4f})"
            loss_axis.plot(steps, losses, color=color, marker="o", markersize=4, linestyle="--", label=label)
        for axis, key in ((lr_axis, "lr"), (norm_axis, "grad_norm"), (speed_axis, "tokens_per_second")):
            steps, values = series(records, "train", key)
            axis.plot(steps, values, color=color, linewidth=1.0, label=name)
    loss_axis.set_title("loss (nats per token)")
    lr_axis.set_title("learning rate")
    norm_axis.set_title("gradient norm before clipping")
    norm_axis.set_yscale("log")
    speed_axis.set_title("tokens per second")
    speed_axis.set_ylim(bottom=0)
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False)
    with publish(out) as temporary:
        figure.savefig(temporary, dpi=120, format=out.suffix[1:])
