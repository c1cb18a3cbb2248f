"""Charts as inline SVG for pages.

Files are drawn by matplotlib (`picture.py`). Pages are not, because a live page draws its charts again every few
seconds, for which matplotlib takes 0.3 seconds a chart, and because this SVG stretches with the window while text and
strokes keep their size, and takes its colours from the page's style sheet. What both draw, and how, is in `charts.py`
and `style.py`.
"""

import html
import json
import math
from collections.abc import Mapping

from gpt2.reporting.charts import Band, Chart, Curves, Line, Scale
from gpt2.reporting.glossary import explained
from gpt2.reporting.style import LIGHT, LOOKS, MOST_DOTS, short

WIDTH, HEIGHT = 1000, 400
"""Size of a drawing in its own units."""
BUCKETS = 300
"""A longer line is thinned to the extremes of this number of pieces."""

Seen = set[tuple[str, str]]
"""Classes and names that a legend on the page has already explained."""


def figures(axes: Mapping[str, Curves]) -> str:
    """Return the figures of charts that can be switched between several x axes; the first axis is shown at once."""
    seen: Seen = set()
    drawn = []
    for charts in zip(*(curves.charts for curves in axes.values()), strict=True):
        others = {
            axis: plot(chart, curves.last)
            for (axis, curves), chart in zip(axes.items(), charts, strict=True)
            if chart is not charts[0]
        }
        drawn.append(svg(charts[0], next(iter(axes.values())).last, seen, others))
    return "".join(drawn)


def svg(chart: Chart, last: float, seen: Seen | None = None, others: Mapping[str, str] | None = None) -> str:
    """Return a `figure` with the chart, its axes and its legend.

    last: where the x axis ends. seen: what the legends of earlier figures explain, which this one then omits.
    others: the same chart over other x axes, each as `plot` returns it.
    """
    title = explained(chart.marked_title)
    lines = chart.drawn(BUCKETS)
    if not lines:
        return f"<figure><figcaption>{title}</figcaption><p class=none>Nothing recorded yet.</p></figure>"
    switched = "".join(f"<template data-x={axis}>{content}</template>" for axis, content in (others or {}).items())
    return (
        f"<figure><figcaption>{title}</figcaption>{_legend(chart, lines, seen)}{plot(chart, last)}{switched}</figure>"
    )


def plot(chart: Chart, last: float) -> str:
    """Return the drawing of a chart with its axes; the page's script reads the values from `data-lines`."""
    lines = chart.drawn(BUCKETS)
    if not lines:
        return "<div class=plot></div>"
    x, y = chart.x_scale(last), chart.y_scale(lines)
    shapes = [_band(chart.band, x, y)] if chart.band else []
    shapes += [f'<path class=level d="M0 {_y(y, value)}H{WIDTH}"/>' for _, value in chart.levels]
    for line in lines:
        points = [f"{_x(x, a)} {_y(y, b)}" for a, b in zip(line.xs, line.ys, strict=True)]
        shapes.append(f'<path class="{_class(line)}" d="M{" ".join(points)}"/>')
        if LOOKS[line.kind].dots or len(points) == 1:  # a line of no length with a round end is a dot
            dots = "".join(f"M{point}h0" for point in points[:: math.ceil(len(points) / MOST_DOTS)])
            shapes.append(f'<path class="{_class(line)} dots" d="{dots}"/>')
    grid = "".join(f"M0 {_y(y, v)}H{WIDTH}" for v in y.ticks(6))
    marks = "".join(f'<span class=y style="top:{100 * (1 - y(v)):.2f}%">{short(v)}</span>' for v in y.ticks(6))
    marks += "".join(f'<span class=x style="left:{100 * x(v):.2f}%">{short(v)}</span>' for v in x.ticks(5))
    data = {
        "x": [x.low, x.high],
        "title": chart.x_title,
        "log": chart.x_log,
        "lines": [
            [f"{line.run} {line.name}".strip(), _class(line), _rounded(line.xs), _rounded(line.ys)] for line in lines
        ],
    }
    latest = ", ".join(f"{line.name} {line.ys[-1]:.4g}" for line in lines)
    label = f"{chart.title}: {latest} at {chart.x_title} {lines[0].xs[-1]:,.6g}. Arrow keys read values."
    return (
        f'<div class=plot tabindex=0 role=img aria-label="{html.escape(label)}" '
        f'data-lines="{html.escape(json.dumps(data))}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio=none aria-hidden=true>'
        f'<path class=grid d="{grid}"/>{"".join(shapes)}</svg>{marks}'
        f"<span class=xtitle>{html.escape(chart.marked_x_title)}</span></div>"
    )


def _class(line: Line) -> str:
    return line.kind if line.series is None else f"{line.kind} s{line.series % len(LIGHT.series)}"


def _legend(chart: Chart, lines: list[Line], seen: Seen | None) -> str:
    """Return the legend, without what an earlier one explains, and without a single line that the title names."""
    named = [(line.kind, line.name) for line in lines]
    if len(set(named)) == 1 and not chart.levels and not chart.band:
        named = []
    named += [("level", f"{name} {value:.4g}") for name, value in chart.levels]
    named += [("band", chart.band.name)] if chart.band else []
    if seen is not None:
        named = [entry for entry in named if entry not in seen]
        seen.update(named)
    items = "".join(f"<li><i class={kind}></i>{explained(name)}</li>" for kind, name in dict.fromkeys(named))
    return f"<ul class=legend>{items}</ul>" if items else ""


def _x(scale: Scale, value: float) -> str:
    return f"{WIDTH * scale(value):.1f}".removesuffix(".0")


def _y(scale: Scale, value: float) -> str:
    return f"{HEIGHT * (1 - scale(value)):.1f}".removesuffix(".0")


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _band(band: Band, x: Scale, y: Scale) -> str:
    """Return the area between the band's low and high values, cut where the axes end."""
    inside = [i for i, at in enumerate(band.xs) if x(at) <= 1]
    points = [(band.xs[i], band.low[i]) for i in inside] + [(band.xs[i], band.high[i]) for i in reversed(inside)]
    drawn = " ".join(f"{_x(x, a)} {_y(y, min(max(b, y.low), y.high))}" for a, b in points)
    return f'<path class=band d="M{drawn}Z"/>' if inside else ""
