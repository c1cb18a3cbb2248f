"""The drawing of the pictures: shapes and texts that become an SVG file, and the axes and curves of charts.

The colours are those of the reports; a picture has its own background, and a dark one where the reader prefers that.
"""

from collections.abc import Sequence
from html import escape

import torch

from gpt2.reporting.charts import Scale
from gpt2.reporting.style import DARK, LIGHT, Palette

Points = Sequence[tuple[float, float]]
Area = tuple[float, float, float, float]
"""Left, top, width and height of a chart."""


def colours(palette: Palette) -> str:
    """Return the CSS variables of a palette."""
    named = {name: getattr(palette, name) for name in ("card", "text", "quiet", "rule", "grid")}
    named |= {f"s{number}": colour for number, colour in enumerate(palette.series)}
    return ":root{" + "".join(f"--{name}:{colour};" for name, colour in named.items()) + "}"


class Picture:
    """A picture collects shapes and texts; positions and sizes are in pixels, from the upper left corner."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, colour: str, strength: float = 0.14) -> None:
        """Draw a rectangle with a border in a colour, filled with the colour as strongly as `strength` says."""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="var(--{colour})" '
            f'fill-opacity="{strength:.2f}" stroke="var(--{colour})"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "text",
        anchor: str = "middle",
        size: float = 13,
        bold: int = 0,
    ) -> None:
        """Write a line of text around the height y."""
        weight = ' font-weight="600"' if bold else ""
        self.shapes.append(
            f'<text x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size:g}" text-anchor="{anchor}"{weight} '
            f'fill="var(--{colour})">{escape(text)}</text>'
        )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        width: float = 1.5,
        arrow: bool = False,
        dashes: str = "",
    ) -> None:
        """Draw a line through points, with an arrow at its end if wanted."""
        path = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        end = f' marker-end="url(#{colour})"' if arrow else ""
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.shapes.append(
            f'<path d="M{path}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"{dashed}{end}/>'
        )

    def plus(self, x: float, y: float) -> None:
        """Draw the sign of an addition."""
        self.shapes.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="var(--card)" stroke="var(--text)" stroke-width="1.5"/>'
        )
        self.line([(x - 6, y), (x + 6, y)], "text")
        self.line([(x, y - 6), (x, y + 6)], "text")

    def svg(self) -> str:
        """Return the picture as an SVG file."""
        size = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="11" markerHeight="11" markerUnits="userSpaceOnUse"'
        arrows = "".join(
            f'<marker id="{colour}" {size} orient="auto"><path d="M0 0L8 4L0 8z" fill="var(--{colour})"/></marker>'
            for colour in ("text", "s0", "s1")
        )
        style = f"{colours(LIGHT)}@media (prefers-color-scheme:dark){{{colours(DARK)}}}"
        shapes = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="system-ui, -apple-system, Segoe UI, sans-serif" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{style}</style>\n<defs>{arrows}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="var(--card)"/>\n{shapes}\n</svg>\n'
        )


def number(value: float) -> str:
    """Return a number with a real minus."""
    return f"{value:g}".replace("-", "−")


def levels(picture: Picture, area: Area, y: Scale, title: str) -> None:
    """Draw the title of a chart into its area, and the lines and numbers of its vertical axis."""
    left, top, width, height = area
    picture.text(left, top - 22, title, anchor="start", bold=True)
    for tick in y.ticks(5):
        at = top + height * (1 - y(tick))
        picture.line([(left, at), (left + width, at)], "grid", 1)
        picture.text(left - 8, at, number(tick), "quiet", "end", 12)


def axes(picture: Picture, area: Area, x: Scale, y: Scale, title: str) -> None:
    """Draw the title, grid and numbers of a chart into its area."""
    left, top, width, height = area
    levels(picture, area, y, title)
    for tick in x.ticks(5):
        picture.text(left + width * x(tick), top + height + 16, number(tick), "quiet", size=12)


def curve(
    picture: Picture, area: Area, x: Scale, y: Scale, points: torch.Tensor, colour: str, dashes: str = ""
) -> None:
    """Draw a curve through points, (n, 2), into the area of a chart."""
    left, top, width, height = area
    drawn = [(left + width * x(a), top + height * (1 - y(b))) for a, b in points.tolist()]
    picture.line(drawn, colour, 2, dashes=dashes)
