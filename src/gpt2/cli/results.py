"""How the commands print their results."""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gpt2.streams import descriptor_of

if TYPE_CHECKING:
    from gpt2.formats.export import Exported

STANDARD_OUTPUT = 1
GAP = "  "
"""Separates the columns of a table."""


def results_stream(out: Path | None) -> TextIO:
    """Return the stream for results: standard output, or standard error if the command's file `out` is that."""
    return sys.stderr if out is not None and descriptor_of(out) == STANDARD_OUTPUT else sys.stdout


def print_difference(made: "Exported", as_json: bool) -> None:
    """Print how far the logits of a converted model are from those of the original."""
    line = (
        f"wrote {made.out} · read back: largest logit difference {made.difference:.2g} "
        f"(largest logit {made.scale:.3g})"
    )
    if as_json:
        line = json.dumps({"out": str(made.out), "logit_difference": made.difference, "logit_scale": made.scale})
    print(line, file=results_stream(made.out))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Return rows of text as aligned columns under a header. Columns named in `right` are aligned to the right.

    On a terminal, the last column is wrapped at its width, or has lines of its own where less than a third is left.
    """
    cells = [[" ".join(cell.splitlines()) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    most = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**9
    begin = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    is_below = begin + widths[-1] > most and begin > most * 2 / 3
    indent = 4 if is_below else begin
    lines = []
    for *others, last in cells:
        columns = zip(header, others, widths, strict=False)
        line = GAP.join(cell.rjust(width) if name in right else cell.ljust(width) for name, cell, width in columns)
        padded = last.rjust(widths[-1]) if header[-1] in right else last
        wrapped = textwrap.wrap(padded, max(most - indent, 20)) if begin + len(padded) > most else [padded]
        if not is_below:
            line += GAP + wrapped.pop(0)
        lines.append(line.rstrip())
        lines += [" " * indent + rest for rest in wrapped if rest]
    return "\n".join(lines)
