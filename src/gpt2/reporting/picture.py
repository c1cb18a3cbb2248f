"""Charts as picture files, drawn by matplotlib in the style of the pages."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import Log, UserError
from gpt2.files import write_bytes
from gpt2.reporting.charts import Chart, Curves, Line, curves_of
from gpt2.reporting.figures import RunReport, report_on, unreadable_lines
from gpt2.reporting.style import BAND_OPACITY, DARK, DASHES, LIGHT, LOOKS, MOST_DOTS, Kind, Palette, short
from gpt2.runlog.curves import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
BUCKETS = 1000
"""A longer line is thinned to the extremes of this number of pieces: a picture has no more columns."""
POINTS = 0.75
"""Points of a CSS pixel."""
MOST_CHARACTERS = 1000
"""Characters of a line of the header, at most; more would not be seen."""
LINE_HEIGHT = 0.22
"""Height of a line of text in the header, in inches."""


def check_name(out: Path) -> None:
    """Raise UserError where a picture's name does not end in one of FORMATS."""
    if out.suffix not in FORMATS:
        raise UserError(f"cannot write {out}: the picture's name must end in {', '.join(FORMATS)}")


def plot_runs(
    runs: Sequence[Path],
    out: Path,
    axis: str = "steps",
    smoothing: float | None = None,
    *,
    dark: bool = False,
    log: Log = lambda line: None,
) -> None:
    """Draw the curves of `runs` over `steps`, `tokens`, `flops` or `time` into the picture `out`.

    smoothing: weight of the earlier values in the moving average of the training loss; 0 is none, None chooses it by
    the run's length. dark: use the colours of the pages' dark mode. log: receives a line about a log with lines that
    cannot be read. Raises UserError for a run without records, or without those that the axis takes, and for a file
    format that is not one of FORMATS.
    """
    check_name(out)
    if smoothing is not None and not 0 <= smoothing < 1:
        raise UserError(f"smooth is {smoothing}; it must be at least 0 and below 1")
    reports = [report_on(run) for run in runs]
    for run, report in zip(runs, reports, strict=True):
        if report.unreadable:
            log(f"{report.name}: {unreadable_lines(report.unreadable)}")
        if not any(r["event"] in ("train", "eval") for r in report.records):
            raise UserError(f"{run} has no training or evaluation records yet; nothing to draw")
    curves, palette = curves_of(reports, axis, smoothing), DARK if dark else LIGHT

    figure = _figure(palette, (12, 7.6))
    header = _header(figure, reports, palette)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.005, 0.005, 0.99, 0.99 - header), hspace=0.06, wspace=0.04)
    loss, *others = curves.charts
    small = others[-3:]
    top = [loss.title, loss.title, others[0].title if len(others) > 3 else loss.title]
    mosaic: Any = [top, [chart.title for chart in small]]
    panels = figure.subplot_mosaic(mosaic, height_ratios=[3, 2])
    for chart in curves.charts:
        draw(panels[chart.title], chart, curves, palette)
    _legend(panels[loss.title], loss, palette)
    if len(others) > 3:
        _name_tasks(panels[others[0].title], others[0], reports, palette)
    save(figure, out)


def plot_positions(by_position: Sequence[float | None], title: str, out: Path, *, dark: bool = False) -> None:
    """Draw the loss in nats per token against the number of earlier tokens. None stands for no prediction."""
    points = [(float(position), loss) for position, loss in enumerate(by_position, start=1) if loss is not None]
    line = Line("loss", "train", [x for x, _ in points], [y for _, y in points])
    chart = Chart("Loss, nats per token", [line], x_title="number of earlier tokens", x_log=True)
    palette = DARK if dark else LIGHT
    figure = _figure(palette, (8, 5))
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0.01, 0.01, 0.97, 0.97))
    figure.suptitle(title, fontsize=9, color=palette.quiet, x=0.02, ha="left", parse_math=False)
    draw(figure.subplots(), chart, Curves([chart], len(by_position)), palette)
    save(figure, out)


def save(figure: "Figure", out: Path) -> None:
    """Write a figure as the picture `out`, in the file format that its suffix names. Raises WriteError."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ ")  # a name in a script that the font lacks shows boxes
        figure.savefig(picture, dpi=120, format=out.suffix[1:], facecolor=figure.get_facecolor())
    write_bytes(out, picture.getvalue())


def draw(axes: "Axes", chart: Chart, curves: Curves, palette: Palette) -> None:
    """Draw a chart into axes as `svg.py` draws it: the same scales, ticks, colours and widths."""
    lines = chart.drawn(BUCKETS)
    _set_up(axes, chart, lines, curves.last, palette)
    if not lines:
        return
    if chart.band:
        b = chart.band
        axes.fill_between(b.xs, b.low, b.high, color=palette.band, alpha=BAND_OPACITY, linewidth=0, zorder=1)
    for _, value in chart.levels:
        axes.axhline(value, color=palette.quiet, linewidth=1.2 * POINTS, dashes=DASHES, zorder=1.5)
    for line in lines:
        look = LOOKS[line.kind]
        colour = palette.of_kind(line.kind) if line.series is None else palette.of_series(line.series)
        axes.plot(
            line.xs,
            line.ys,
            color=colour,
            alpha=look.opacity,
            linewidth=look.width * POINTS,
            linestyle=(0, DASHES) if look.dashed else "-",
            marker="o" if look.dots or len(line.xs) == 1 else "",
            markersize=6 * POINTS,
            markeredgewidth=0,
            markevery=math.ceil(len(line.xs) / MOST_DOTS),
            solid_joinstyle="round",
        )


def _set_up(axes: "Axes", chart: Chart, lines: list[Line], last: float, palette: Palette) -> None:
    """Set the titles, scales and ticks of axes."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_title(chart.marked_title, loc="left", fontsize=10, fontweight="bold", color=palette.text)
    axes.set_xlabel(chart.marked_x_title, fontsize=8.5, color=palette.quiet)
    axes.set_facecolor(palette.card)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(palette.rule)
    axes.tick_params(length=0, labelsize=8.5, colors=palette.quiet)
    if not lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "Nothing recorded yet.", ha="center", color=palette.quiet, transform=axes.transAxes)
        return
    x, y = chart.x_scale(last), chart.y_scale(lines)
    for scale, axis, most in ((x, axes.xaxis, 5), (y, axes.yaxis, 6)):
        name = "x" if axis is axes.xaxis else "y"
        getattr(axes, f"set_{name}scale")("log" if scale.log else "linear")
        getattr(axes, f"set_{name}lim")(scale.low, scale.high)
        ticks = scale.ticks(most)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_minor_locator(NullLocator())
        axis.set_ticklabels([short(tick) for tick in ticks])


def _figure(palette: Palette, size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    return Figure(figsize=size, layout="constrained", facecolor=palette.card)


def _header(figure: "Figure", reports: Sequence[RunReport], palette: Palette) -> float:
    """Write a line with the facts of each run, its name in its colour; returns the height that they take, of 1."""
    height = figure.get_size_inches()[1]
    for number, report in enumerate(reports):
        at = 1 - (0.1 + LINE_HEIGHT * (2 * number + 0.5)) / height
        colour = palette.text if len(reports) == 1 else palette.of_series(number)
        left = 0.012
        if len(reports) > 1:
            figure.text(left, at, "●", color=colour, fontsize=10, va="center")
            left += 0.016
        figure.text(
            left,
            at,
            report.name.replace("\n", " "),
            color=colour,
            fontsize=12,
            fontweight="bold",
            va="center",
            parse_math=False,
        )
        losses = []
        if report.last and report.best:
            last, best = report.last["val_loss"], report.best["val_loss"]
            losses = [f"val {last:.4f} (best {best:.4f} at step {report.best['step']:,})"]
        facts = " · ".join([*losses, *report.facts()]).replace("\n", " ")[:MOST_CHARACTERS]
        below = at - 0.92 * LINE_HEIGHT / height
        figure.text(left, below, printable(facts), color=palette.quiet, fontsize=8.5, va="center", parse_math=False)
    return (0.2 + LINE_HEIGHT * 2 * len(reports)) / height


def _legend(axes: "Axes", chart: Chart, palette: Palette) -> None:
    """Explain the kinds of lines, the levels and the band of a chart in its upper right corner."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    several = any(line.series is not None for line in chart.lines)
    kinds: dict[tuple[Kind, str], None] = dict.fromkeys((line.kind, line.name) for line in chart.drawn(BUCKETS))
    for kind, name in kinds:
        look = LOOKS[kind]
        colour = palette.quiet if several else palette.of_kind(kind)
        style = {"color": colour, "alpha": look.opacity, "linewidth": look.width * POINTS, "label": name}
        handles.append(Line2D([], [], marker="o" if look.dots else "", markersize=6 * POINTS, **style))
    for name, value in chart.levels:
        level = {"color": palette.quiet, "linewidth": 1.2 * POINTS, "dashes": DASHES}
        handles.append(Line2D([], [], label=f"{name} {value:.4g}", **level))
    if chart.band:
        handles.append(Patch(color=palette.band, alpha=BAND_OPACITY, linewidth=0, label=chart.band.name))
    if handles:
        axes.legend(handles=handles, fontsize=8.5, frameon=False, loc="upper right", labelcolor=palette.quiet)


def _name_tasks(axes: "Axes", chart: Chart, reports: Sequence[RunReport], palette: Palette) -> None:
    """Name the lines of HellaSwag with their last values."""
    handles = []
    for handle, line in zip(axes.lines[len(chart.levels) :], chart.drawn(BUCKETS), strict=True):
        run = line.run or reports[0].name
        label = f"{run} {line.name} (last {line.ys[-1]:.4f})"
        handle.set_label(label.replace("$", r"\$"))  # else it begins a formula
        handles.append(handle)
    for handle, (name, value) in zip(axes.lines, chart.levels, strict=False):
        handle.set_label(f"{name} {value:.4g}")
        handles.append(handle)
    axes.legend(handles=handles, fontsize=8, frameon=False, labelcolor=palette.quiet)
