"""The records of a log in a few megabytes, however many there are, for pictures and reports.

A short log keeps its records. In a long one, neighbouring steps become one record with their mean, their extremes and
their sums, so that curves keep their trend and their peaks, and times their sums.
"""

from operator import itemgetter, mul
from typing import Any

Record = dict[str, Any]

MOST_STEPS = 4096
MOST_OTHERS = {"eval": 2048, "sample": 64, "checkpoint": 512}
MOST_OF_AN_EVENT = 1024
"""Records kept of an event that is not in MOST_OTHERS."""
MOST_SEGMENTS = 512
"""Stretches between two resumes, skipped steps or the like, whose steps are not joined with others."""
MOST_CHARACTERS = 4000
"""Characters of a sample or another text, at most."""
MOST_EVENTS = 100
"""Kinds of events that are kept; this program writes ten."""
LEAST_RATE = 1e-6
"""Tokens per second below which a rate means nothing."""
EXTREMES = ("loss", "grad_norm", "tokens_per_second")
"""Figures of a step whose lowest and highest values are drawn."""
MEANS = ("loss", "grad_norm", "mfu")
"""Figures whose mean stands for several steps. The mean of tokens_per_second is tokens divided by time."""


class Thinned:
    """Holds records of a log, added in order, and keeps no more of them than a picture needs."""

    def __init__(self) -> None:
        self.steps: list[Record] = []
        self.size = 1
        """Number of steps that become one record of `steps`."""
        self.newest: list[Record] = []
        """The steps after those, fewer than `size`."""
        self.others: dict[tuple[str, bool], list[Record]] = {}
        """Records of each other event; evaluations of the loss are separate from those of HellaSwag."""
        self.added = 0
        self.segment = 0
        self.unreadable = 0
        """Number of lines of the log that are not records."""

    def add(self, record: Record) -> None:
        """Add the next record, which this object may change from then on."""
        self.added += 1
        record["order"] = self.added
        if record["event"] == "train":
            self._add_step(record)
        else:
            self._add_other(record)

    def skip(self) -> None:
        """Count a line of the log that is not a record."""
        self.unreadable += 1

    @property
    def records(self) -> list[Record]:
        """Return the records that stand for all, in order.

        A `train` record of several steps has their number as `count`, and as `extremes` the steps and values of the
        lowest and the highest of each of EXTREMES.
        """
        found = [*self.steps, *(record for kept in self.others.values() for record in kept)]
        if self.newest:
            found.append(joined(self.newest))
        return sorted(found, key=lambda record: record["order"])

    def _add_step(self, record: Record) -> None:
        record["segment"] = self.segment
        self.newest.append(record)
        if len(self.newest) >= self.size:
            self._close_newest()

    def _close_newest(self) -> None:
        """Join the newest steps into one record."""
        if self.newest:
            self.steps.append(joined(self.newest))
            self.newest = []
        if len(self.steps) >= MOST_STEPS:
            self._join_pairs()

    def _join_pairs(self) -> None:
        """Join neighbouring records in pairs, but not across a resume or the like."""
        pairs: list[list[Record]] = []
        for record in self.steps:
            if pairs and len(pairs[-1]) == 1 and pairs[-1][0]["segment"] == record["segment"]:
                pairs[-1].append(record)
            else:
                pairs.append([record])
        self.steps, self.size = [joined(pair) for pair in pairs], 2 * self.size

    def _add_other(self, record: Record) -> None:
        event = record["event"]
        if event not in MOST_OTHERS:  # the time before a resume belongs to no step
            self._close_newest()
            self.segment = min(self.segment + 1, MOST_SEGMENTS)
        for key, value in record.items():
            if isinstance(value, str) and len(value) > MOST_CHARACTERS:
                record[key] = value[:MOST_CHARACTERS]
        if len(self.others) >= MOST_EVENTS and (event, "val_loss" in record) not in self.others:
            return
        kept = self.others.setdefault((record["event"], "val_loss" in record), [])
        kept.append(record)
        if len(kept) > MOST_OTHERS.get(event, MOST_OF_AN_EVENT):
            kept[:] = every_other(kept)


def joined(records: list[Record]) -> Record:
    """Return one `train` record for those of neighbouring steps."""
    if len(records) == 1:
        return records[0]
    counts = [r.get("count", 1) for r in records]
    result = records[-1] | {"count": sum(counts), "extremes": {}}
    for key in MEANS:
        known, times = _known(records, counts, key)
        if known:
            result[key] = sum(map(mul, known, times)) / sum(times)
    rates, times = _known(records, counts, "tokens_per_second")
    if known := [(rate, count) for rate, count in zip(rates, times, strict=True) if rate > LEAST_RATE]:
        result["tokens_per_second"] = sum(count for _, count in known) / sum(count / rate for rate, count in known)
    for key in EXTREMES:
        if points := _points(records, key):
            result["extremes"][key] = (min(points, key=itemgetter(1)), max(points, key=itemgetter(1)))
    if seconds := [r["seconds"] for r in records if "seconds" in r]:
        phases = dict.fromkeys(phase for split in seconds for phase in split)
        result["seconds"] = {phase: sum([split.get(phase, 0.0) for split in seconds]) for phase in phases}
    return result


def _known(records: list[Record], counts: list[int], key: str) -> tuple[list[float], list[int]]:
    """Return the values of a figure without missing ones, and the number of steps that each stands for."""
    values = [value for r in records if (value := r.get(key)) is not None]
    if len(values) == len(records):
        return values, counts
    return values, [count for r, count in zip(records, counts, strict=True) if r.get(key) is not None]


def _points(records: list[Record], key: str) -> list[tuple[int, float]]:
    """Return steps and values of a figure: the lowest and the highest of a record that stands for several steps."""
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
    """Return half of the records, the newest and the one with the lowest validation loss among them.

    The seconds of an omitted one are added to the next.
    """
    measured = [r for r in records if r.get("val_loss") is not None]
    best = min(measured, key=lambda r: r["val_loss"]) if measured else None
    kept, omitted = [], 0.0
    for i, record in enumerate(records):
        seconds = record.get("seconds")
        if i % 2 and i < len(records) - 1 and record is not best:
            omitted += seconds if isinstance(seconds, int | float) else 0.0
            continue
        if omitted and isinstance(seconds, int | float):
            record["seconds"], omitted = seconds + omitted, 0.0
        kept.append(record)
    return kept
