"""The records of a run as points of curves: placed on an axis, smoothed, thinned. Drawing is in `reporting/`."""

import os
import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gpt2.errors import UserError
from gpt2.runlog.checks import COUNT_LIMIT, parse
from gpt2.runlog.other_logs import find_log, is_another_programs, stream_any
from gpt2.runlog.records import FILE, finished_lines, positioned
from gpt2.runlog.thinned import LEAST_RATE, Thinned

if TYPE_CHECKING:
    from gpt2.model import GPTConfig

Records = list[dict[str, Any]]
Points = tuple[list[float], list[float]]
"""Values on the x axis, and on the y axis."""

UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Characters that no picture or page can show; surrogates stand for bytes in file names, see PEP 383."""
SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias")
"""The settings from which the number of parameters and FLOPs follow."""
INTEGERS = (
    *SHAPE[:-1], "max_iters", "batch_size", "total_batch_size", "gradient_accumulation_steps", "eval_iters",
)  # fmt: skip
"""Settings that reports calculate with, which must be integers."""
LIMITS = ("max_tokens", "max_epochs", "max_minutes")
"""Settings that reports calculate with, which must be finite numbers."""
INTEGER_LIMIT = 1 << 40
"""These settings are below it."""
MOST_SETTINGS_BYTES = 1 << 16
"""A config.toml is smaller."""


def load(run: Path) -> Thinned:
    """Return the records of a run folder or of a log, also another program's, thinned where they are many.

    Every picture and report is made of these records. Raises UserError where there is no log.
    """
    thinned = Thinned()
    for record in stream_any(run, thinned.skip):
        thinned.add(record)
    return thinned


class Follower:
    """Holds the thinned records of a log that grows: each look reads only what is new."""

    TAIL = 200
    """Number of bytes before the position that must not have changed; otherwise the log is another one."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.thinned, self.position, self.tail = Thinned(), 0, b""

    def look(self) -> bool:
        """Read what is new in the log; returns whether there was anything.

        Raises OSError where the log cannot be read, and UserError where there is none.
        """
        path = find_log(self.run)
        return self._read_other(path) if is_another_programs(path) else self._read(path)

    def _read(self, path: Path) -> bool:
        """Read what is new in a `log.jsonl`."""
        before = self.position, self.tail
        with path.open("rb") as file:
            if self._tail_in(file) != self.tail or not self._read_on(file):
                self.thinned, self.position = Thinned(), 0
                for position, record in positioned(path, self.thinned.skip):
                    self.position = position
                    if record is not None:
                        self.thinned.add(record)
            self.tail = self._tail_in(file)
        return (self.position, self.tail) != before

    def _read_other(self, path: Path) -> bool:
        """Read another program's log again if its size has changed; returns whether it had."""
        size = path.stat().st_size
        if size == self.position:
            return False
        self.thinned, self.position = Thinned(), size
        for record in stream_any(path, self.thinned.skip):
            self.thinned.add(record)
        return True

    def _tail_in(self, file: BinaryIO) -> bytes:
        """Return the bytes before the position in a file."""
        begin = max(0, self.position - self.TAIL)
        file.seek(begin)
        return file.read(self.position - begin)

    def _read_on(self, file: BinaryIO) -> bool:
        """Add the new records; returns False at the beginning, and where the run went back to an earlier step."""
        if not self.position:
            return False
        for position, line in finished_lines(file, self.position):
            record = parse(line)
            if record is not None:
                if record["event"] in ("start", "resume"):
                    return False
                self.thinned.add(record)
            elif not line.isspace():
                self.thinned.skip()
            self.position = position
        return True


def settings_of(run: Path) -> dict[str, Any]:
    """Return the run's config.toml, without settings of a wrong type; empty where it cannot be read."""
    folder = run if run.is_dir() else run.parent
    try:
        with (folder / "config.toml").open("rb") as file:
            text = file.read(MOST_SETTINGS_BYTES)
        settings = tomllib.loads(text.decode()) if len(text) < MOST_SETTINGS_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in settings.items() if _is_usable(name, value)}


def _is_usable(name: str, value: Any) -> bool:
    """Return whether the value of a setting has a type and a size that reports can show and calculate with."""
    if name in INTEGERS:
        return type(value) is int and 0 <= value < INTEGER_LIMIT
    if name in LIMITS:
        return type(value) in (int, float) and 0 <= value < COUNT_LIMIT
    if isinstance(value, list):
        return all(isinstance(entry, str) for entry in value)
    return isinstance(value, str | float) or (isinstance(value, int) and abs(value) < COUNT_LIMIT)


def name_of(run: Path) -> str:
    """Return the name of a run to show: that of its folder, or of its log where that is not `log.jsonl`."""
    return printable(Path(os.path.realpath(run.parent if run.name == FILE else run)).name)


def printable(text: str) -> str:
    """Return a text with replacements for control characters and for bytes of a file name that is not UTF-8."""
    return UNPRINTABLE.sub("\ufffd", text)


def series(records: Records, event: str, key: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of `key` in the records of one kind of event."""
    points = [(r["step"], r[key]) for r in records if r["event"] == event and r.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def extremes(records: Records, key: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of `key` in the `train` records.

    A record that stands for several steps gives their lowest and their highest value.
    """
    points: list[tuple[int, float]] = []
    for r in records:
        if r["event"] == "train":
            if key in r.get("extremes", {}):
                points += sorted(r["extremes"][key])
            elif r.get(key) is not None:
                points.append((r["step"], r[key]))
    return [step for step, _ in points], [value for _, value in points]


def counts(records: Records, key: str) -> list[int]:
    """Return the number of steps behind each value that `series` gives for `key` of the `train` records."""
    return [r.get("count", 1) for r in records if r["event"] == "train" and r.get(key) is not None]


def smooth(values: Sequence[float], weight: float, counts: Sequence[int] | None = None) -> list[float]:
    """Return the exponential moving average, corrected for its start (Kingma & Ba 2015, section 3).

    weight: that of the earlier values, at least 0 and below 1. counts: the number of equal values each stands for.
    """
    result, average, total = [], 0.0, 1.0
    for value, count in zip(values, counts or [1] * len(values), strict=True):
        kept = weight**count
        average = kept * average + (1 - kept) * value
        total *= kept
        result.append(average / (1 - total))
    return result


def smoothing_for(count: int) -> float:
    """Return the weight that averages over a hundredth of `count` values: it shows the trend, not the batches."""
    return 1 - 1 / max(2.5, count / 100)


def thin(xs: Sequence[float], ys: Sequence[float], buckets: int) -> Points:
    """Return at most 2·buckets + 2 of the points, which draw the same line: both ends, and each bucket's extremes."""
    if len(xs) <= 2 * buckets:
        return list(xs), list(ys)
    kept = {0, len(xs) - 1}
    for bucket in range(buckets):
        among = range(bucket * len(xs) // buckets, (bucket + 1) * len(xs) // buckets)
        kept |= {min(among, key=ys.__getitem__), max(among, key=ys.__getitem__)}
    return [xs[i] for i in sorted(kept)], [ys[i] for i in sorted(kept)]


def seconds_worked(records: Records) -> list[float]:
    """Return for each record the seconds of steps, evaluations and checkpoints so far.

    The time between a stop and a resume does not count.
    A step whose rate is unknown, or was rounded to 0, counts with the time on the clock.
    """
    total, tokens, clock, result = 0.0, None, 0.0, []
    for r in records:
        if r["event"] in ("train", "skip"):
            made = r["tokens"] - tokens if tokens is not None else 0
            rate = r["tokens_per_second"] or 0.0
            total += made / rate if rate > LEAST_RATE else max(0.0, r.get("time", clock) - clock) if clock else 0.0
        elif r["event"] in ("eval", "checkpoint"):
            total += r.get("seconds", 0.0)
        tokens, clock = r.get("tokens", tokens), r.get("time", clock)
        result.append(total)
    return result


def axis_position(records: Records, axis: str, settings: dict[str, Any], name: str) -> Callable[[int], float]:
    """Return the function from a step to its position on an axis: `steps`, `tokens`, `flops` or `time` (seconds).

    Tokens are those seen so far; FLOPs are 6N per token and those of attention. Between two records the position is
    that of the earlier one. Raises UserError where the log or the settings of the run called `name` lack something.
    """
    if axis == "steps":
        return float
    steps_made = [(i, r) for i, r in enumerate(records) if r["event"] in ("start", "resume", "train", "skip")]
    try:
        if axis == "time":
            seconds = seconds_worked(records)
            positions = [seconds[i] for i, _ in steps_made]
        else:
            scale = 1 if axis == "tokens" else flops_per_token(settings)
            positions = [r["tokens"] * scale for _, r in steps_made]
    except KeyError as error:
        raise UserError(
            f"{name} does not record {error.args[0]}, from which --x={axis} is computed (logs of llm.c and "
            "build-nanogpt have the number of the step alone); use --x=steps"
        ) from None
    steps = [r["step"] for _, r in steps_made]
    return lambda step: positions[max(0, bisect_right(steps, step) - 1)] if positions else 0.0


def time_unit(longest: float) -> tuple[float, str]:
    """Return the unit in which durations up to `longest` seconds are written: its seconds, and its name."""
    return (3600, "hours") if longest >= 2 * 3600 else (60, "minutes") if longest >= 120 else (1, "seconds")


def flops_per_token(settings: dict[str, Any]) -> int:
    """Return the FLOPs per token of the model that a run's settings describe. Raises KeyError without its shape."""
    from gpt2.accounting import flops_per_token  # here, with PyTorch behind it

    return flops_per_token(model_of(settings))


def model_of(settings: dict[str, Any]) -> "GPTConfig":
    """Return the configuration of the model that a run's settings describe. Raises KeyError without its shape."""
    shape = {name: settings[name] for name in SHAPE}
    from gpt2.model import GPTConfig  # here, with PyTorch behind it

    return GPTConfig(**shape)
