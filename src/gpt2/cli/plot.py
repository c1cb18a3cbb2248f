"""`gpt2 plot`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import OUT
from gpt2.runlog.console import note
from gpt2.training.setting import OUTPUT


def plot(
    *runs: Annotated[Path, Parameter(required=True)],
    out: Annotated[Path, OUTPUT, OUT] = Path("plot.png"),
    x: Literal["steps", "tokens", "flops", "time"] = "steps",
    smooth: float | None = None,
    dark: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw loss, HellaSwag, learning rate, gradient norm and throughput of one or more runs, overlaid.

    Parameters
    ----------
    runs
        Run folders, or log.jsonl files.
    out
        Picture to write; its suffix chooses the file format (.png, .svg, .pdf).
    x
        The x axis. time is that of steps, evaluations and checkpoints, without the time between a stop and a resume;
        flops are the model's own, forward and backward.
    smooth
        Weight of the earlier values in the moving average of the training loss, below 1; 0 is off. The loss of every
        step is drawn faintly behind it. Default: chosen by the number of steps.
    dark
        Draw light lines on a dark ground.
    """
    from gpt2.reporting.picture import plot_runs

    plot_runs(runs, out, x, smooth, dark=dark, log=note)
    note(f"wrote {out}")
