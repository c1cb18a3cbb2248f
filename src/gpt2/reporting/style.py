"""How curves look and how numbers are written. Pages and picture files take it from here, so that they look alike."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["raw", "train", "val", "third"]
"""The kind of a line: every step, training (smoothed), validation, or another measurement."""


@dataclass(frozen=True)
class Look:
    """A look says how the lines of one kind are drawn."""

    width: float
    """Width in CSS pixels."""
    opacity: float = 1.0
    dashed: bool = False
    dots: bool = False
    """Whether each point has a dot."""


LOOKS: dict[Kind, Look] = {
    "raw": Look(1.0, opacity=0.3),
    "train": Look(1.7),
    "val": Look(1.7, dots=True),
    "third": Look(1.5, dashed=True, dots=True),
}
DASHES = (5, 4)
"""Lengths of a dash and of the gap after it, in CSS pixels."""
MOST_DOTS = 40
"""Dots on one line; of more points, every n-th has one."""


@dataclass(frozen=True)
class Palette:
    """The colours of one scheme, as CSS hexadecimal colours (#rrggbb)."""

    page: str
    card: str
    text: str
    quiet: str
    """Text of less weight: axes, remarks."""
    rule: str
    """Borders."""
    grid: str
    train: str
    val: str
    third: str
    band: str
    """The area of a reference, drawn at BAND_OPACITY."""
    good: str
    bad: str
    series: tuple[str, ...]
    """Colours of several runs (or splits, or phases) next to each other."""
    scale: tuple[str, ...]
    """Colours of a quantity from its least to its largest value, which differ in lightness, also for colour-blind
    people. They begin with the card's: ColorBrewer's YlGnBu in the light scheme, matplotlib's viridis in the dark."""

    def of_kind(self, kind: Kind) -> str:
        """Return the colour of a kind of line where one run is drawn."""
        return {"raw": self.train, "train": self.train, "val": self.val, "third": self.third}[kind]

    def of_series(self, number: int) -> str:
        """Return the colour of a run among several, by its number from 0; after the last one they repeat."""
        return self.series[number % len(self.series)]


BAND_OPACITY = 0.24
LIGHT = Palette(
    page="#fbfbfa", card="#ffffff", text="#1d2330", quiet="#5d6675", rule="#e3e5ea", grid="#e9ebef",
    train="#2563c9", val="#c2410c", third="#0f766e", band="#0f766e", good="#11703c", bad="#b3261e",
    series=("#2563c9", "#c2410c", "#0f766e", "#7c3aed", "#be185d", "#7a6a00", "#475569", "#92532b"),
    scale=(
        "#ffffff", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58",
    ),
)  # fmt: skip
DARK = Palette(
    page="#12151b", card="#1a1e26", text="#e4e7ec", quiet="#9aa4b2", rule="#2b313c", grid="#272d37",
    train="#7aaefc", val="#ffa266", third="#4fd1bd", band="#4fd1bd", good="#6fd39a", bad="#ff938a",
    series=("#7aaefc", "#ffa266", "#4fd1bd", "#c4a5ff", "#ff8fc0", "#d9c74a", "#a8b3c4", "#d6a06a"),
    scale=(
        "#1a1e26", "#443a83", "#365c8d", "#277f8e", "#1fa187", "#35b779", "#6ece58", "#b5de2b", "#fde725",
    ),
)  # fmt: skip


def css() -> str:
    """Return the style sheet of the palettes and of the kinds of lines: CSS variables and a class for each kind."""
    light, dark = (_variables(palette) for palette in (LIGHT, DARK))
    rules = [
        f":root{{color-scheme:light dark;{light}}}",
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}",
    ]
    for kind, look in LOOKS.items():
        colour = "train" if kind == "raw" else kind
        dashes = f";stroke-dasharray:{DASHES[0]} {DASHES[1]}" if look.dashed else ""
        rules.append(
            f".{kind}{{color:var(--{colour});stroke:currentColor;opacity:{look.opacity:g}}}"
            f".plot .{kind}{{stroke-width:{look.width:g}{dashes}}}"
        )
    rules += [
        f".s{i}{{color:var(--series{i});fill:currentColor;stroke:currentColor}}" for i in range(len(LIGHT.series))
    ]
    rules += [f".v{i}{{background:var(--scale{i});color:var(--ink{i})}}" for i in range(len(LIGHT.scale))]
    rules.append(f".band{{fill:var(--band);opacity:{BAND_OPACITY:g}}}")
    return "\n".join(rules)


def _variables(palette: Palette) -> str:
    colours = {name: value for name, value in vars(palette).items() if isinstance(value, str)}
    colours |= {f"series{i}": value for i, value in enumerate(palette.series)}
    colours |= {f"scale{i}": value for i, value in enumerate(palette.scale)}
    colours |= {f"ink{i}": ink(value) for i, value in enumerate(palette.scale)}
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def ink(background: str) -> str:
    """Return black or white, whichever is easier to read on a background, all as #rrggbb.

    It is the one with the larger contrast ratio of WCAG 2, which compares relative luminances.
    """
    parts = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def short(value: float) -> str:
    """Return a number as it is written at an axis: 0.0006 becomes 6e-4, 20000 becomes 20k."""
    if value == 0:
        return "0"
    if abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def about(value: float) -> str:
    """Return a number with three digits, such as 124M for 124439808."""
    return short(float(f"{value:.3g}"))


def memory(size: float) -> str:
    """Return a number of bytes in GiB or MiB."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def quantity(value: float, unit: str) -> str:
    """Return a quantity with three digits and a prefix for a power of ten, such as `1.24 GB`, `350 kB` or `12 B`."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            number = f"{value / size:.3g}" if value < 999.5 * size else f"{value / size:,.0f}"
            return f"{number} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def file_size(size: float) -> str:
    """Return a number of bytes of a file as `1.24 GB`, `350 kB` or `12 B`, in powers of ten."""
    return quantity(size, "B")
