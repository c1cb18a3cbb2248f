"""Curves as inline SVG: lines stretch with the page, while text and strokes keep their size."""

import html
import json
import math
from dataclasses import dataclass, field
from typing import Literal

from gpt2.runlog.curves import thin

WIDTH, HEIGHT = 1000, 400
"""Of the drawing in its own units."""
BUCKETS = 300
"""Of a line that is drawn thinned."""
LEAST = 1e-60
"""A logarithmic axis has only what is greater: the smallest floats have no ratio to others."""


@dataclass(frozen=True)
class Line:
    """A curve. kind: how it looks, a class of the style sheet."""

    name: str
    kind: Literal["raw", "train", "val", "third"]
    xs: list[float]
    ys: list[float]


@dataclass(frozen=True)
class Chart:
    """Curves over steps."""

    title: str
    lines: list[Line]
    log: bool = False
    """A logarithmic y axis, on which values that are not above LEAST are left out."""
    from_zero: bool = False
    fit_from: float = 0
    """The y axis fits what is drawn from this step on; what came before may leave it."""
    band: tuple[str, list[float], list[float], list[float]] | None = None
    """Name, steps, low and high values of an area beneath the curves."""
    levels: list[tuple[str, float]] = field(default_factory=list)
    """Names and values of horizontal lines."""

    def drawn(self) -> list[Line]:
        """The lines as they are drawn: thinned, and without what the axis does not have."""
        result = []
        for line in self.lines:
            points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if not self.log or y > LEAST]
            xs, ys = thin([x for x, _ in points], [y for _, y in points], BUCKETS)
            result.append(Line(line.name, line.kind, xs, ys))
        return [line for line in result if line.xs]


@dataclass(frozen=True)
class Scale:
    """From values between `low` and `high` to 0…1."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """Round values to write at the axis, at most about so many and none too near to another."""
        if self.log and self.high / self.low > 20:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [10.0**power for power in powers]
        else:
            parts = 3 * most if self.log else most  # a logarithmic axis crowds them at its upper end
            rough = (self.high - self.low) / parts
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            found = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        kept: list[float] = []
        for value in found:
            if -1e-6 <= self(value) <= 1 + 1e-6 and (not kept or self(value) - self(kept[-1]) > 0.5 / most):
                kept.append(value)
        return kept


def short(value: float) -> str:
    """A number as it stands at an axis: 0.0006 is 6e-4, 20000 is 20k."""
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def svg(chart: Chart, last_step: int) -> str:
    """A `figure` with the chart, its axes and legend; its script reads the values from `data-lines`."""
    title = html.escape(chart.title)
    lines = chart.drawn()
    if not lines:
        return f"<figure><figcaption>{title}</figcaption><p class=none>Nothing recorded yet.</p></figure>"
    x, y = Scale(0, max(last_step, 1)), _y_scale(chart, lines)
    shapes = [_band(chart.band, x, y)] if chart.band else []
    for _, value in chart.levels:
        shapes.append(f'<path class=level d="M0 {_y(y, value)}H{WIDTH}"/>')
    for line in lines:
        points = [f"{_x(x, a)} {_y(y, b)}" for a, b in zip(line.xs, line.ys, strict=True)]
        shapes.append(f'<path class={line.kind} d="M{" ".join(points)}"/>')
        if line.kind == "val" or len(points) == 1:  # a line of no length with a round end is a dot
            dots = "".join(f"M{point}h0" for point in points[:: math.ceil(len(points) / 40)])
            shapes.append(f'<path class="{line.kind} dots" d="{dots}"/>')
    grid = "".join(f"M0 {_y(y, v)}H{WIDTH}" for v in y.ticks(6))
    marks = "".join(f'<span class=y style="top:{100 * (1 - y(v)):.2f}%">{short(v)}</span>' for v in y.ticks(6))
    marks += "".join(f'<span class=x style="left:{100 * x(v):.2f}%">{short(v)}</span>' for v in x.ticks(5))
    named = [(line.kind, line.name) for line in lines] + [("level", f"{n} {v:.4g}") for n, v in chart.levels]
    named += [("band", chart.band[0])] if chart.band else []
    legend = "".join(f"<li><i class={kind}></i>{html.escape(name)}</li>" for kind, name in named)
    data = {
        "x": [x.low, x.high],
        "lines": [[line.name, line.kind, _rounded(line.xs), _rounded(line.ys)] for line in lines],
    }
    latest = ", ".join(f"{line.name} {line.ys[-1]:.4g}" for line in lines)
    label = html.escape(f"{chart.title}: {latest} at step {lines[0].xs[-1]:,.0f}. Arrow keys read values.")
    return (
        f"<figure><figcaption>{title}</figcaption><ul class=legend>{legend}</ul>"
        f'<div class=plot tabindex=0 role=img aria-label="{label}" data-lines="{html.escape(json.dumps(data))}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio=none aria-hidden=true>'
        f'<path class=grid d="{grid}"/>{"".join(shapes)}</svg>{marks}</div></figure>'
    )


def _x(scale: Scale, value: float) -> str:
    return f"{WIDTH * scale(value):.1f}".removesuffix(".0")


def _y(scale: Scale, value: float) -> str:
    return f"{HEIGHT * (1 - scale(value)):.1f}".removesuffix(".0")


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _y_scale(chart: Chart, lines: list[Line]) -> Scale:
    """From the lowest to the highest of what is drawn, with a little room."""
    fitted = [y for line in lines for x, y in zip(line.xs, line.ys, strict=True) if x >= chart.fit_from]
    values = fitted + [value for _, value in chart.levels]
    low, high = min(values), max(values)
    if chart.log:
        room = max((high / low) ** 0.04, 1.01)
        return Scale(low / room, high * room, log=True)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(0 if chart.from_zero else low - room, high + room)


def _band(band: tuple[str, list[float], list[float], list[float]], x: Scale, y: Scale) -> str:
    """The area between the band's low and high values, cut where the axes end."""
    _, steps, low, high = band
    there = [i for i, step in enumerate(steps) if x(step) <= 1]
    points = [(steps[i], low[i]) for i in there] + [(steps[i], high[i]) for i in reversed(there)]
    drawn = " ".join(f"{_x(x, a)} {_y(y, min(max(b, y.low), y.high))}" for a, b in points)
    return f'<path class=band d="M{drawn}Z"/>' if there else ""
