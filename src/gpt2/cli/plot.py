"""`gpt2 plot`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.runlog.console import note


def plot(
    *runs: Annotated[Path, Parameter(required=True)],
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("plot.png"),
) -> None:
    """Draw loss, learning rate and throughput of one or more runs, overlaid.

    Parameters
    ----------
    runs
        Run folders, or log.jsonl files.
    out
        Picture to write; the suffix chooses the format (.png, .svg, .pdf).
    """
    from gpt2.runlog.plots import plot_runs

    plot_runs(runs, out)
    note(f"wrote {out}")
