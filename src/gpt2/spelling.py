"""Finds the name that a misspelt one probably stands for."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from `name` by the fewest typing errors; None if all differ by many.

    Upper and lower case, and dashes and underscores, count as equal. One error per five characters is allowed, and at
    least one.
    """
    typed = _plain(name)
    allowed = max(1, len(typed) // 5)
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
