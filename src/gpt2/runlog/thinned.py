"""The records of a log in a few megabytes, however many there are: what pictures and reports are made of.

A short log stays as it is. Of a long one, neighbouring updates become one record, which has their mean, their
extremes and their sums, so that curves keep their course and their peaks, and times their sums.
"""

from operator import itemgetter, mul
from typing import Any

Record = dict[str, Any]

MOST_UPDATES = 4096
MOST_OTHERS = {"eval": 2048, "sample": 64, "checkpoint": 512}
MOST_OF_AN_EVENT = 1024
"""Records kept of an event that is not in MOST_OTHERS."""
MOST_SEGMENTS = 512
"""Stretches between two resumes, skips or the like whose updates are kept apart."""
SAMPLE_CHARACTERS = 4000
EXTREMES = ("loss", "grad_norm", "tokens_per_second")
"""Figures of an update whose lowest and highest values are drawn."""
MEANS = ("loss", "grad_norm", "mfu")
"""Figures whose mean stands for several updates. That of tokens_per_second is tokens over time."""


class Thinned:
    """Records of a log, added in order; at most so many are kept that a picture of them looks the same."""

    def __init__(self) -> None:
        self.updates: list[Record] = []
        self.size = 1
        """Updates that become one record of `updates`."""
        self.newest: list[Record] = []
        """The updates after those, which are fewer than that."""
        self.others: dict[tuple[str, bool], list[Record]] = {}
        """Of each other event; evaluations of the loss apart from those of HellaSwag."""
        self.added = 0
        self.segment = 0

    def add(self, record: Record) -> None:
        """Add a record after all others. It belongs to this object from then on."""
        self.added += 1
        record["order"] = self.added
        if record["event"] == "train":
            self._add_update(record)
        else:
            self._add_other(record)

    @property
    def records(self) -> list[Record]:
        """What stands for all records, in their order.

        A `train` record of several updates has their number as `count`, and as `extremes` the steps and values of
        the lowest and the highest of each of EXTREMES.
        """
        found = [*self.updates, *(record for kept in self.others.values() for record in kept)]
        if self.newest:
            found.append(joined(self.newest))
        return sorted(found, key=lambda record: record["order"])

    def _add_update(self, record: Record) -> None:
        record["segment"] = self.segment
        self.newest.append(record)
        if len(self.newest) >= self.size:
            self._close_newest()

    def _close_newest(self) -> None:
        """Have one record stand for the newest updates."""
        if self.newest:
            self.updates.append(joined(self.newest))
            self.newest = []
        if len(self.updates) >= MOST_UPDATES:
            self._join_pairs()

    def _join_pairs(self) -> None:
        """Have each record stand for twice as many updates, but for those before and after a resume or the like."""
        pairs: list[list[Record]] = []
        for record in self.updates:
            if pairs and len(pairs[-1]) == 1 and pairs[-1][0]["segment"] == record["segment"]:
                pairs[-1].append(record)
            else:
                pairs.append([record])
        self.updates, self.size = [joined(pair) for pair in pairs], 2 * self.size

    def _add_other(self, record: Record) -> None:
        event = record["event"]
        if event not in MOST_OTHERS:  # the wait before a resume is no time of an update
            self._close_newest()
            self.segment = min(self.segment + 1, MOST_SEGMENTS)
        if isinstance(text := record.get("text"), str):
            record["text"] = text[:SAMPLE_CHARACTERS]
        kept = self.others.setdefault((event, "val_loss" in record), [])
        kept.append(record)
        if len(kept) > MOST_OTHERS.get(event, MOST_OF_AN_EVENT):
            kept[:] = every_other(kept)


def joined(records: list[Record]) -> Record:
    """One `train` record for those of neighbouring updates."""
    if len(records) == 1:
        return records[0]
    counts = [r.get("count", 1) for r in records]
    result = records[-1] | {"count": sum(counts), "extremes": {}}
    for key in MEANS:
        known, times = _known(records, counts, key)
        if known:
            result[key] = sum(map(mul, known, times)) / sum(times)
    rates, times = _known(records, counts, "tokens_per_second")
    if known := [(rate, count) for rate, count in zip(rates, times, strict=True) if rate]:
        result["tokens_per_second"] = sum(count for _, count in known) / sum(count / rate for rate, count in known)
    for key in EXTREMES:
        if points := _points(records, key):
            result["extremes"][key] = (min(points, key=itemgetter(1)), max(points, key=itemgetter(1)))
    if seconds := [r["seconds"] for r in records if "seconds" in r]:
        parts = dict.fromkeys(part for split in seconds for part in split)
        result["seconds"] = {part: sum([split.get(part, 0.0) for split in seconds]) for part in parts}
    return result


def _known(records: list[Record], counts: list[int], key: str) -> tuple[list[float], list[int]]:
    """The values of a figure without those that are missing, and how many updates each stands for."""
    values = [value for r in records if (value := r.get(key)) is not None]
    if len(values) == len(records):
        return values, counts
    return values, [count for r, count in zip(records, counts, strict=True) if r.get(key) is not None]


def _points(records: list[Record], key: str) -> list[tuple[int, float]]:
    """Steps and values of a figure: of a record that stands for several updates, the lowest and the highest."""
    if not any("extremes" in r for r in records):
        return [(r["step"], value) for r in records if (value := r.get(key)) is not None]
    points: list[tuple[int, float]] = []
    for r in records:
        if "extremes" in r:
            points += r["extremes"].get(key, ())
        elif r.get(key) is not None:
            points.append((r["step"], r[key]))
    return points


def every_other(records: list[Record]) -> list[Record]:
    """Half of the records, the newest and the one with the lowest validation loss among them.

    The seconds of one that is left out are added to the next.
    """
    measured = [r for r in records if r.get("val_loss") is not None]
    best = min(measured, key=lambda r: r["val_loss"]) if measured else None
    kept, passed = [], 0.0
    for i, record in enumerate(records):
        seconds = record.get("seconds")
        if i % 2 and i < len(records) - 1 and record is not best:
            passed += seconds if isinstance(seconds, int | float) else 0.0
            continue
        if passed and isinstance(seconds, int | float):
            record["seconds"], passed = seconds + passed, 0.0
        kept.append(record)
    return kept
