"""Where a command prints its results."""

import sys
from pathlib import Path
from typing import TextIO

from gpt2.streams import descriptor_of

STANDARD_OUTPUT = 1


def results_stream(out: Path | None) -> TextIO:
    """Standard output for results; standard error where the file `out` that a command writes is standard output."""
    return sys.stderr if out is not None and descriptor_of(out) == STANDARD_OUTPUT else sys.stdout
