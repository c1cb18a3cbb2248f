"""JSON files of other programs, read within bounds."""

import json
from pathlib import Path
from typing import Any

MAX_DIGITS = 100
"""Largest number of digits of an integer."""


def read_json(path: Path, max_bytes: int) -> Any:
    """Return the content of a JSON file.

    Raises ValueError for a file of more than `max_bytes`, for one that is nested too deeply and for one that is not
    JSON, and OSError where it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    try:
        return json.loads(data.decode(), parse_int=_integer)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)
