"""`gpt2 plot`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.runlog.console import note


def plot(
    *runs: Annotated[Path, Parameter(required=True)],
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("plot.png"),
    x: Literal["steps", "tokens", "flops", "time"] = "steps",
    smooth: float | None = None,
) -> None:
    """Draw loss, HellaSwag, learning rate, gradient norm and throughput of one or more runs, overlaid.

    Parameters
    ----------
    runs
        Run folders, or log.jsonl files.
    out
        Picture to write; the suffix chooses the format (.png, .svg, .pdf).
    x
        What to draw against. time is that of updates, evaluations and checkpoints, without the wait between a stop
        and a resume; flops are the model's own, forward and backward.
    smooth
        Weight of what came before in the moving average of the training loss, below 1; 0 is off. The loss itself
        stays behind it, faint. Default: by the number of updates.
    """
    from gpt2.report.picture import plot_runs

    plot_runs(runs, out, x, smooth)
    note(f"wrote {out}")
