"""Which lines of a `log.jsonl` are records: values have the types and sizes that pictures and reports rely on.

Reading a log of a million records calls `parse` for each, so that its checks must be cheap.
"""

import json
from typing import Any

STEP_FIGURES = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory")
EVALUATION_FIGURES = ("train_loss", "val_loss", "acc", "acc_norm")
"""Values that are numbers, or null where they are not finite."""
TEXTS = ("text", "because", "device", "machine", "torch", "version", "host")
NUMBERS = ("processes", "parameters", "train_tokens", "rank", "times", "stopped", "background_seconds")
"""Values of other records that are texts or numbers, where they are there."""
LARGEST = 1e60
"""A figure beyond it counts as infinite."""
LATEST_TIME = 1e11
"""Seconds that no clock and no phase of a run exceeds."""
COUNT_LIMIT = 1 << 63
"""A number of steps or tokens is below it."""
DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # as other programs write NaN and Infinity


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of a log, with None for a figure that is not finite; None for any other line."""
    try:
        return checked(DECODER.decode(line.decode(errors="replace")))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record if its values have the types and sizes that pictures and reports rely on.

    Raises ValueError, KeyError, TypeError, AttributeError or OverflowError otherwise.
    """
    event, seconds = record["event"], record.get("seconds")
    if type(event) is not str or type(record["step"]) is not int or not 0 <= record["step"] < COUNT_LIMIT:
        raise ValueError(record)
    for key in STEP_FIGURES if event in ("train", "skip") else EVALUATION_FIGURES:
        value = record.get(key)
        if value is not None and not -LARGEST < value < LARGEST:
            record[key] = None
    if not 0 <= record.get("time", 0) < LATEST_TIME or not 0 <= record.get("tokens", 0) < COUNT_LIMIT:
        raise ValueError(record)
    if seconds is None:
        record.pop("seconds", None)
    else:
        has_phases = isinstance(seconds, dict)
        if event in (("eval", "checkpoint") if has_phases else ("train",)):
            raise ValueError(record)
        if not (sum(map(abs, seconds.values())) if has_phases else abs(seconds)) < LATEST_TIME:
            raise ValueError(record)
    if event == "train":
        record.pop("count", None)  # names that thinned records use
        record.pop("extremes", None)
    else:
        _check_other(record)
    return record


def _check_other(record: dict[str, Any]) -> None:
    """Raise an error as `checked` does where a record that is not of a step has a wrong value."""
    if not all(-LARGEST < value < LARGEST for value in record.values() if isinstance(value, int | float)):
        raise ValueError(record)
    if not all(isinstance(record[key], str) for key in TEXTS if key in record):
        raise ValueError(record)
    if not all(isinstance(record[key], int | float | None) for key in NUMBERS if key in record):
        raise ValueError(record)
    if not all(isinstance(content, str) for content in record.get("data", {}).values()):
        raise ValueError(record)
    if record["event"] == "straggler" and not {"rank", "host", "times"} <= record.keys():
        raise ValueError(record)
