"""`gpt2 compare`."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag
from gpt2.errors import UserError
from gpt2.runlog.console import note

if TYPE_CHECKING:
    from gpt2.reporting.side_by_side import Comparison

WIDEST = 100
"""Number of characters of a table's line where there is no terminal."""


def compare(*runs: Annotated[Path, Parameter(required=True)], json_: JsonFlag = False) -> None:
    """Compare runs: the settings that differ, losses, speed, tokens and time. The best of each is marked with a star.

    Parameters
    ----------
    runs
        Two or more run folders or logs, also those of llm.c and build-nanogpt.
    """
    from gpt2.reporting.figures import report_on, unreadable_lines
    from gpt2.reporting.side_by_side import compare as make

    if len(runs) < 2:
        raise UserError(f"there is only one run to compare, {runs[0]}; name two or more, or use gpt2 show")
    reports = [report_on(run) for run in runs]
    for report in reports:
        if report.unreadable:
            note(f"{report.name}: {unreadable_lines(report.unreadable)}")
    found = make(reports)
    if json_:
        figures = found.as_json()
        for values, run in zip(figures["runs"], runs, strict=True):
            values["path"] = str(run)
        print(json.dumps(figures))
    else:
        print(described(found, [str(run) for run in runs]))


def described(found: "Comparison", paths: Sequence[str]) -> str:
    """Return a comparison as a table with a column for each run. Long names are replaced by numbers."""
    rows = []
    for figure in found.figures:
        cells = ["–" if value is None else figure.write(value) for value in figure.values]
        rows.append([figure.title, *(f"{cell} *" if i in figure.best else cell for i, cell in enumerate(cells))])
    if found.settings:
        rows.append([""] * (len(paths) + 1))
        rows += [[name, *values] for name, values in found.settings.items()]
    names = [report.name for report in found.reports]
    labels = names if len(set(names)) == len(names) else list(paths)
    lines = aligned(["", *labels], rows)
    if max(map(len, lines)) > (shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDEST):
        legend = [f"{i}  {path}" for i, path in enumerate(paths, start=1)]
        lines = [*legend, "", *aligned(["", *(str(i) for i in range(1, len(paths) + 1))], rows)]
    return "\n".join(lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose values end below each other, with the stars behind them."""
    cells = [[name, *(value if value.endswith(" *") else f"{value}  " for value in row)] for name, *row in rows]
    cells.insert(0, [header[0], *(f"{label}  " for label in header[1:])])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([name.ljust(widths[0]), *map(str.rjust, row, widths[1:])]).rstrip() for name, *row in cells]
