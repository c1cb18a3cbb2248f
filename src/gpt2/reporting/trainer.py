"""Whether the process that trains a run is still at work."""

import os
import time
from pathlib import Path

LOCK = ".lock"
"""The file in a run folder that a trainer locks as long as it runs (`training/session.py`)."""
LOCKS = Path("/proc/locks")
FRESH_SECONDS = 120.0
"""A run whose last record is not older counts as running where locks cannot be seen."""


def is_training(run: Path, newest: float | None) -> bool:
    """Return whether a trainer works in the folder of `run`, which may also be a log in it.

    newest: time of the last record in Unix seconds, None where no record has one. Linux lists its locks, and reading
    that list disturbs nobody. Elsewhere, or where the trainer is on another machine, a new record counts.
    """
    folder = run if run.is_dir() else run.parent
    return _is_locked(folder / LOCK) or (newest is not None and abs(time.time() - newest) < FRESH_SECONDS)


def _is_locked(path: Path) -> bool:
    try:
        about, lines = path.stat(), LOCKS.read_text().splitlines()
    except OSError:
        return False
    name = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return any(name in line.split() and "FLOCK" in line for line in lines)
