"""What the wall time of a process goes into."""

import time
from collections.abc import Sequence


class Ledger:
    """Books all time since it was opened under parts; what belongs to none is `other`.

    imports: seconds that the program took before that to begin, mostly to import PyTorch.
    """

    def __init__(self, imports: float = 0.0) -> None:
        self.parts: dict[str, float] = {"imports": imports} if imports else {}
        self.marked = time.perf_counter()

    def mark(self, part: str = "other") -> float:
        """What happened since the last mark was `part`; returns its seconds."""
        now = time.perf_counter()
        seconds, self.marked = now - self.marked, now
        self.parts[part] = self.parts.get(part, 0.0) + seconds
        return seconds

    def move(self, part: str, seconds: float) -> None:
        """So much of what was, or will be, booked as `other` was this part."""
        self.parts[part] = self.parts.get(part, 0.0) + seconds
        self.parts["other"] = self.parts.get("other", 0.0) - seconds

    def updates(self, splits: Sequence[dict[str, float]]) -> float:
        """What happened since the last mark were updates, each with its own split; returns the seconds of all."""
        seconds = self.mark("other")
        for split in splits:
            for part, share in split.items():
                self.move(part, share)
        return seconds

    def totals(self) -> dict[str, float]:
        """Seconds of each part up to now; together they are the wall time since the ledger was opened."""
        self.mark()
        return {part: round(seconds, 5) for part, seconds in self.parts.items()}
