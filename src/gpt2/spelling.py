"""Words of messages: the name that a misspelt one probably stands for, and a count with its noun."""

import contextlib
import itertools
from collections.abc import Iterable
from pathlib import Path

MOST_NAMES = 10_000
"""Largest number of names of a folder among which a misspelt one is looked for."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which is in the plural unless the count is 1: `1 file`, `2,000 files`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the question `did you mean …?` with the known name, or else the path, that `name` probably stands for.

    Returns `otherwise` where nothing else has a similar name.
    """
    close = nearest(name, (other for other in known if other != name)) or near_path(name)
    return f"did you mean {close}?" if close else otherwise


def near_path(name: str) -> str | None:
    """Return the existing path that a misspelt one, in which any folder may be misspelt, probably stands for.

    Returns None for a path that exists.
    """
    with contextlib.suppress(OSError, ValueError):  # a name that no path can have, or a folder that cannot be read
        found = None if Path(name).exists() else _near_path(Path(name))
        return None if found is None else str(found)
    return None


def _near_path(path: Path) -> Path | None:
    if path.exists():
        return path
    folder = _near_path(path.parent)
    if folder is None or not folder.is_dir():
        return None
    if (folder / path.name).exists():
        return folder / path.name
    close = nearest(path.name, (entry.name for entry in itertools.islice(folder.iterdir(), MOST_NAMES)))
    return None if close is None else folder / close


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from `name` by the fewest typing errors; None if all differ by many.

    Upper and lower case, and dashes and underscores, count as equal. One error per five characters is allowed, and at
    least one in a name of more than one character.
    """
    typed = _plain(name)
    allowed = max(1, len(typed) // 5) if len(typed) > 1 else 0
    near = [candidate for candidate in known if abs(len(candidate) - len(name)) <= allowed]
    distances = {candidate: distance(typed, _plain(candidate)) for candidate in near}
    best = min(distances, key=lambda candidate: distances[candidate], default=None)
    return best if best is not None and distances[best] <= allowed else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def distance(a: str, b: str) -> int:
    """Return the number of insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.

    This is the optimal string alignment distance, a restricted form of Damerau (1964).
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, above, row = row, before, [i]
        for j, right in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1]
