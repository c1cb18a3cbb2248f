"""The processes that a test starts, and all that these start in turn, whichever session they make for themselves."""

import os
import time
from pathlib import Path

FAMILY = "GPT2_TEST_FAMILY"


def environment(family: object) -> dict[str, str]:
    """For a process whose descendants are to be found by the name of their family; each computes with one thread."""
    inherited = {name: value for name, value in os.environ.items() if name != "RANK"}
    return inherited | {FAMILY: str(family), "OMP_NUM_THREADS": "1"}


def members(family: object) -> dict[int, dict[str, str]]:
    """Environments of the processes of a family by their ids. One that has ended has none any more."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(line.split("=", 1) for line in path.read_text().split("\0") if "=" in line)
        except (OSError, UnicodeDecodeError):
            continue
        if variables.get(FAMILY) == str(family):
            found[int(path.parent.name)] = variables
    return found


def remaining(family: object) -> list[int]:
    """Processes of a family that do not end within ten seconds."""
    deadline = time.monotonic() + 10
    while (found := members(family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(found)
