"""What is drawn of runs: charts as data. `svg.py` draws them on pages, `picture.py` into files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from gpt2.errors import UserError
from gpt2.reporting.figures import RunReport
from gpt2.reporting.style import Kind
from gpt2.runlog.curves import axis_position, counts, extremes, series, smooth, smoothing_for, thin, time_unit

LEAST = 1e-60
"""A logarithmic axis has only greater values: the smallest floats have no ratio to others."""
PATTERNS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Multiples of each power of ten that divide a logarithmic axis into nearly equal parts."""
TITLES = {
    "steps": "step",
    "tokens": "tokens",
    "flops": "training FLOPs",
}
"""Titles of the x axes; that of time is `seconds of training` or another unit."""


@dataclass(frozen=True)
class Line:
    """A curve."""

    name: str
    kind: Kind
    xs: list[float]
    ys: list[float]
    series: int | None = None
    """Number of the run among several, which chooses the colour; None where one run is drawn."""
    run: str = ""
    """Name of the run among several."""


@dataclass(frozen=True)
class Band:
    """An area between low and high values, behind the lines."""

    name: str
    xs: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to 0…1."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Return round values to write at the axis: about `most` at the most, and none too near to another.

        Those of a logarithmic axis are the multiples of one number or follow one of PATTERNS, whichever is more even.
        """
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        steps = [power * nice for nice in (1, 2, 5, 10, 20, 50)]
        if not self.log:
            return self._multiples(next(step for step in steps if step >= rough * 0.999))
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        choices = [self._multiples(step) for step in steps]
        choices += [self._inside([part * 10.0**power for power in powers for part in parts]) for parts in PATTERNS]
        choices += [self._inside([10.0**power for power in powers[::every]]) for every in range(2, len(powers))]
        return min(
            (found for found in choices if 0 < len(found) <= most + 1), key=lambda found: self._rank(found, most)
        )

    def _multiples(self, step: float) -> list[float]:
        """Return the multiples of a number on the axis."""
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return self._inside([i * step for i in range(first, last + 1)])

    def _inside(self, values: list[float]) -> list[float]:
        """Return the values that are on the axis."""
        return [value for value in values if (value > 0 or not self.log) and -1e-6 <= self(value) <= 1 + 1e-6]

    def _rank(self, ticks: list[float], most: int) -> tuple[bool, float]:
        """Return whether two ticks are too near, and the largest part of the axis without one: less is better."""
        gaps = [self(right) - self(left) for left, right in pairwise(ticks)]
        return min(gaps, default=1.0) < 0.5 / most, max([self(ticks[0]), *gaps, 1 - self(ticks[-1])])


@dataclass(frozen=True)
class Chart:
    """Curves over one x axis."""

    title: str
    lines: list[Line]
    log: bool = False
    """Whether the y axis is logarithmic; it omits values that are not above LEAST."""
    from_zero: bool = False
    fit_from: float = 0
    """The y axis fits what is drawn from this x on; earlier values may leave it."""
    band: Band | None = None
    levels: list[tuple[str, float]] = field(default_factory=list)
    """Names and values of horizontal lines."""
    x_title: str = "step"
    x_log: bool = False
    """Whether the x axis is logarithmic; it then begins at 1."""

    @property
    def marked_title(self) -> str:
        """Return the title, which says so where the y axis is logarithmic."""
        return f"{self.title} (log scale)" if self.log else self.title

    @property
    def marked_x_title(self) -> str:
        """Return the title of the x axis, which says so where that is logarithmic."""
        return f"{self.x_title} (log scale)" if self.x_log else self.x_title

    def drawn(self, buckets: int) -> list[Line]:
        """Return the lines as they are drawn: thinned, and without values that the axes do not have."""
        result = []
        for line in self.lines:
            points = [
                (x, y)
                for x, y in zip(line.xs, line.ys, strict=True)
                if (not self.log or y > LEAST) and (not self.x_log or x >= 1)
            ]
            xs, ys = thin([x for x, _ in points], [y for _, y in points], buckets)
            result.append(replace(line, xs=xs, ys=ys))
        return [line for line in result if line.xs]

    def x_scale(self, last: float) -> Scale:
        """Return the scale of an x axis that ends at `last`."""
        return Scale(1, max(last, 2), log=True) if self.x_log else Scale(0, last if last > 0 else 1)

    def y_scale(self, lines: Sequence[Line]) -> Scale:
        """Return the scale from the lowest to the highest value of `lines`, with a margin."""
        fitted = [y for line in lines for x, y in zip(line.xs, line.ys, strict=True) if x >= self.fit_from]
        values = (fitted or [y for line in lines for y in line.ys]) + [value for _, value in self.levels]
        low, high = min(values), max(values)
        if self.log:
            margin = max((high / low) ** 0.04, 1.01)
            return Scale(low / margin, high * margin, log=True)
        margin = 0.06 * (high - low)
        if margin <= max(1e-12 * max(abs(low), abs(high)), LEAST):  # the values are equal but for rounding
            margin = 0.05 * abs(high) if abs(high) > LEAST else 1.0
        if self.from_zero:
            return Scale(0, high + margin if high > 0 else 1)
        return Scale(low - margin, high + margin)


@dataclass(frozen=True)
class Curves:
    """The charts of one or several runs over one x axis."""

    charts: list[Chart]
    last: float
    """Where the x axis of each chart ends."""


def curves_of(
    reports: Sequence[RunReport],
    axis: str = "steps",
    smoothing: float | None = None,
) -> Curves:
    """Return the charts of runs over an axis: loss, HellaSwag where it was measured, learning rate, norm, speed.

    smoothing: weight of the earlier values in the moving average of the training loss; 0 is none, None chooses it by
    the run's length. Raises UserError where a run's log or settings do not have what the axis takes.
    """
    at = [axis_position(r.records, axis, r.settings, r.name) for r in reports]
    last = max((to(r.step) for to, r in zip(at, reports, strict=True)), default=0.0)
    unit, x_title = 1.0, TITLES.get(axis, "")
    if axis == "time":
        unit, named = time_unit(last)
        x_title = f"{named} of training"
    drawers = [
        _Drawer(r, lambda step, to=to: to(step) / unit, i if len(reports) > 1 else None, smoothing)
        for i, (r, to) in enumerate(zip(reports, at, strict=True))
    ]
    last /= unit
    long_enough = max((r.step for r in reports), default=0) >= 200
    settled = last / 25 if long_enough else 0  # the fall at the start would flatten all the rest
    band, levels = _reference(reports, drawers, axis)
    loss = [line for d in drawers for line in [*d.smoothed("loss"), d.evaluated("val", "validation", "val_loss")]]
    charts = [
        Chart("Loss, nats per token", loss, log=True, fit_from=settled, band=band, levels=levels, x_title=x_title)
    ]
    tasks = [
        line
        for d in drawers
        for line in (d.evaluated("val", "acc_norm", "acc_norm"), d.evaluated("third", "acc", "acc"))
    ]
    if any(line.xs for line in tasks):
        charts.append(Chart("HellaSwag accuracy", tasks, levels=[("chance", 0.25)], x_title=x_title))
    norm = [line for d in drawers for line in d.smoothed("grad_norm")]
    charts += [
        Chart("Learning rate", [d.course("train", "lr") for d in drawers], from_zero=True, x_title=x_title),
        Chart("Gradient norm", norm, log=True, x_title=x_title),
        Chart(
            "Tokens per second",
            [d.course("train", "tokens_per_second") for d in drawers],
            from_zero=True,
            x_title=x_title,
        ),
    ]
    return Curves(charts, last)


def axes_of(reports: Sequence[RunReport], axes: Sequence[str] = ("steps", "tokens", "time")) -> dict[str, Curves]:
    """Return the charts over each of the axes that the logs of all runs have."""
    found = {}
    for axis in axes:
        try:
            found[axis] = curves_of(reports, axis)
        except UserError:  # another program's log has no tokens, nor a time
            continue
    return found


@dataclass(frozen=True)
class _Drawer:
    """Makes the lines of one run."""

    report: RunReport
    at: Callable[[int], float]
    """Gives the x value of a step."""
    series: int | None
    smoothing: float | None

    def line(self, kind: Kind, name: str, points: tuple[list[int], list[float]]) -> Line:
        steps, values = points
        run = "" if self.series is None else self.report.name
        return Line(name, kind, [self.at(step) for step in steps], values, self.series, run)

    def course(self, kind: Kind, key: str) -> Line:
        """Return the line of a figure of every step."""
        name = "every step" if kind == "raw" else key.replace("_", " ")
        return self.line(kind, name, extremes(self.report.records, key))

    def evaluated(self, kind: Kind, name: str, key: str) -> Line:
        """Return the line of a figure of the evaluations."""
        return self.line(kind, name, series(self.report.records, "eval", key))

    def smoothed(self, key: str) -> list[Line]:
        """Return the faint line of a figure of every step, and its moving average."""
        steps, values = series(self.report.records, "train", key)
        sizes = counts(self.report.records, key)
        weight = smoothing_for(sum(sizes)) if self.smoothing is None else self.smoothing
        name = "training, smoothed" if weight else "training"
        return [self.course("raw", key), self.line("train", name, (steps, smooth(values, weight, sizes)))]


def _reference(
    reports: Sequence[RunReport], drawers: Sequence[_Drawer], axis: str
) -> tuple[Band | None, list[tuple[str, float]]]:
    """Return the band and the levels of the reference that all runs share; a band has steps, and so no time."""
    reference = reports[0].verdict.reference if reports else None
    if reference is None or any(r.verdict.reference != reference for r in reports):
        return None, []
    levels = [(level.label, level.val_loss) for level in reference.levels]
    if reference.band is None or axis == "time" or not reports[0].step:
        return None, levels
    b, each_step = reference.band, drawers[0].at(reports[0].step) / reports[0].step
    low, high = [v - b.margin for v in b.low], [v + b.margin for v in b.high]
    return Band(f"{reference.name}, validation", [each_step * step for step in b.steps], low, high), levels
