"""The records of a run as points of curves: where they lie, smoothed, thinned. Nothing here draws."""

import tomllib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gpt2.errors import UserError
from gpt2.runlog.other_logs import find_log, is_another_programs, stream_any
from gpt2.runlog.records import FILE, finished_lines, parse, positioned
from gpt2.runlog.thinned import Thinned

Records = list[dict[str, Any]]
Points = tuple[list[float], list[float]]
"""Places on the axis, and values there."""

AXES = {"steps": "step", "tokens": "tokens", "flops": "training FLOPs", "time": "seconds of training"}
"""What a curve can be drawn against, and what is then written at its axis."""
SHAPE = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "bias")
"""The settings that FLOPs follow from."""
LEAST_RATE = 1e-6
"""Tokens a second below which a rate says nothing."""
WHOLE_NUMBERS = (
    *SHAPE[:-1], "max_iters", "batch_size", "total_batch_size", "gradient_accumulation_steps", "eval_iters",
)  # fmt: skip
"""Settings that are calculated with."""


def load(run: Path) -> Records:
    """The records of a run folder or of a log, our own or another program's, thinned where they are many.

    Every picture has its figures from here. Raises UserError.
    """
    thinned = Thinned()
    for record in stream_any(run):
        thinned.add(record)
    return thinned.records


class Follower:
    """The thinned records of a run's log that grows: each look reads only what is new."""

    TAIL = 200
    """Bytes before the position that must be as they were; otherwise the log is another one."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.thinned, self.position, self.tail = Thinned(), 0, b""

    def look(self) -> bool:
        """Read what is new in the log; returns whether there was anything. Raises OSError and UserError."""
        path, before = find_log(self.run), (self.position, self.tail)
        if is_a_peers(path):
            return self._read_a_peers(path)
        with path.open("rb") as file:
            if self._tail_in(file) != self.tail or not self._read_on(file, path):
                self.thinned, self.position = Thinned(), 0
                for position, record in positioned(path):
                    self.position = position
                    if record is not None:
                        self.thinned.add(record)
            self.tail = self._tail_in(file)
        return (self.position, self.tail) != before

    def _read_a_peers(self, path: Path) -> bool:
        """Read another program's log anew if it has another size; returns whether it had."""
        size = path.stat().st_size
        if size == self.position:
            return False
        self.thinned, self.position = Thinned(), size
        for record in stream_any(path):
            self.thinned.add(record)
        return True

    def _tail_in(self, file: BinaryIO) -> bytes:
        """The bytes before the position in a file."""
        begin = max(0, self.position - self.TAIL)
        file.seek(begin)
        return file.read(self.position - begin)

    def _read_on(self, file: BinaryIO, path: Path) -> bool:
        """Add the new records; returns False at the beginning, and where the run went back behind some of them."""
        if not self.position:
            return False
        for position, line in finished_lines(file, self.position):
            record = parse(line, path)
            if record["event"] in ("start", "resume"):
                return False
            self.thinned.add(record)
            self.position = position + len(line)
        return True


def settings_of(run: Path) -> dict[str, Any]:
    """The run's config.toml without numbers that are none; empty where there is none that can be read."""
    folder = run if run.is_dir() else run.parent
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in settings.items() if name not in WHOLE_NUMBERS or type(value) is int}


def name_of(run: Path) -> str:
    """What a run is called: its folder, or a log by its own name where that says more."""
    return (run.parent if run.name == FILE else run).resolve().name


def series(records: Records, event: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of `key` in the records of one kind of event."""
    points = [(r["step"], r[key]) for r in records if r["event"] == event and r.get(key) is not None]
    return [step for step, _ in points], [value for _, value in points]


def extremes(records: Records, key: str) -> tuple[list[int], list[float]]:
    """As `series` of the updates, but of a record that stands for several their lowest and highest value."""
    points: list[tuple[int, float]] = []
    for r in records:
        if r["event"] == "train":
            if key in r.get("extremes", {}):
                points += sorted(r["extremes"][key])
            elif r.get(key) is not None:
                points.append((r["step"], r[key]))
    return [step for step, _ in points], [value for _, value in points]


def counts(records: Records, key: str) -> list[int]:
    """The number of updates behind each value that `series` gives for `key` of the updates."""
    return [r.get("count", 1) for r in records if r["event"] == "train" and r.get(key) is not None]


def smooth(values: Sequence[float], weight: float, counts: Sequence[int] | None = None) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma & Ba 2015, section 3).

    weight: of what came before each value, at least 0 and below 1. counts: how many equal values each stands for.
    """
    result, average, total = [], 0.0, 1.0
    for value, count in zip(values, counts or [1] * len(values), strict=True):
        kept = weight**count
        average = kept * average + (1 - kept) * value
        total *= kept
        result.append(average / (1 - total))
    return result


def smoothing_for(count: int) -> float:
    """The weight whose memory is a hundredth of so many values: one sees the course then, and not the batches."""
    return 1 - 1 / max(2.5, count / 100)


def thin(xs: Sequence[float], ys: Sequence[float], buckets: int) -> Points:
    """At most 2·buckets + 2 of the points, which draw the same line: both ends, and of each bucket its extremes."""
    if len(xs) <= 2 * buckets:
        return list(xs), list(ys)
    kept = {0, len(xs) - 1}
    for bucket in range(buckets):
        among = range(bucket * len(xs) // buckets, (bucket + 1) * len(xs) // buckets)
        kept |= {min(among, key=ys.__getitem__), max(among, key=ys.__getitem__)}
    return [xs[i] for i in sorted(kept)], [ys[i] for i in sorted(kept)]


def seconds_worked(records: Records) -> list[float]:
    """Of each record, the seconds of updates, evaluations and checkpoints up to it: no wait between two sessions.

    An update whose rate is unknown, or was rounded to nothing, has what the clock says.
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


def place(records: Records, axis: str, settings: dict[str, Any], name: str) -> Callable[[int], float]:
    """The function that gives a step's place on one of AXES: that of the last update up to it.

    Tokens are those seen so far, FLOPs 6N a token and those of attention. Raises UserError where the log or the
    configuration of the run called `name` does not say what that takes.
    """
    if axis == "steps":
        return float
    updates = [(i, r) for i, r in enumerate(records) if r["event"] in ("start", "resume", "train", "skip")]
    try:
        if axis == "time":
            seconds = seconds_worked(records)
            places = [seconds[i] for i, _ in updates]
        else:
            scale = 1 if axis == "tokens" else flops_per_token(settings)
            places = [r["tokens"] * scale for _, r in updates]
    except KeyError as error:
        raise UserError(f"{name} does not say its {error.args[0]}, which --x={axis} takes; use --x=steps") from None
    steps = [r["step"] for _, r in updates]
    return lambda step: places[max(0, bisect_right(steps, step) - 1)] if places else 0.0


def time_unit(longest: float) -> tuple[float, str]:
    """The seconds of the unit in which one says up to so many, and its name."""
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
