"""How the commands print their results."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gpt2.streams import descriptor_of

if TYPE_CHECKING:
    from gpt2.formats.export import Exported

STANDARD_OUTPUT = 1


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
