"""The loss at each position of a model's context, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from gpt2.runlog.plots import save


def plot_positions(by_position: Sequence[float | None], title: str, out: Path) -> None:
    """Draw nats a token against how many tokens come before it. None where nothing was predicted."""
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    points = [(place, value) for place, value in enumerate(by_position, start=1) if value is not None]
    axis.plot(*zip(*points, strict=True), linewidth=1.0)
    axis.set_xscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("tokens to look back on")
    axis.set_ylabel("loss (nats per token)")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, out)
