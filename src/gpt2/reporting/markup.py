"""Pieces of HTML that the pages share, and the frame around them: a page needs no network and no other file."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib import resources
from itertools import pairwise
from typing import Any

from gpt2.reporting import style
from gpt2.reporting.charts import Curves
from gpt2.reporting.glossary import explained
from gpt2.reporting.svg import figures
from gpt2.runlog.console import duration
from gpt2.runlog.curves import printable

MOST_ENTRIES = 100
"""Evaluations or incidents that are shown; of more, some that are spread evenly."""


def frame(title: str, content: str, live: bool = False, styles: str = "", module: str | None = None) -> str:
    """Return the complete page.

    live: whether it asks its server for new content again and again. styles: CSS rules of this page alone. module: an
    ES module that runs in place of the reports' script.
    """
    tag, script = ("<script>", _file("page.js")) if module is None else ("<script type=module>", module)
    return (
        f"<!doctype html><html lang=en{' data-live' if live else ''}><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{content_policy(module)}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<title>{escape(printable(title))} · gpt2</title>"
        f"<style>{stylesheet()}{styles}</style></head>"
        f"<body><main>{content}</main>{tag}{script}</script></body></html>\n"
    )


def stylesheet() -> str:
    """Return the CSS that all pages share: colours, text, tables and charts."""
    return f"{style.css()}\n{_file('page.css')}"


@cache
def content_policy(script: str | None = None) -> str:
    """Return the Content-Security-Policy of a page with this script, by default that of the reports.

    Texts of a run are escaped. Should one slip through, the browser still runs no script but the page's own, and
    asks no other server.
    """
    digest = base64.b64encode(hashlib.sha256((script or _file("page.js")).encode()).digest()).decode()
    scripts, styles = f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'"
    return f"default-src 'none'; {styles}; {scripts}; connect-src 'self'; img-src data:"


@cache
def _file(name: str) -> str:
    return resources.files("gpt2.reporting").joinpath(name).read_text(encoding="utf-8")


def sections(contents: dict[str, str]) -> str:
    """Return sections with their ids; one without content is omitted. Unprintable characters are replaced."""
    made = "".join(f"<section id={name}>{content}</section>" for name, content in contents.items() if content)
    return printable(made)


def curves(axes: dict[str, Curves], runs: Sequence[str] = ()) -> str:
    """Return the section of curves, with a switch where there are several x axes, and the colours of `runs`."""
    radios = "".join(
        f"<label><input type=radio name=x value={axis}{' checked' if i == 0 else ''} />{axis}</label>"
        for i, axis in enumerate(axes)
    )
    switch = f"<fieldset class=axes hidden><legend>x axis</legend>{radios}</fieldset>" if len(axes) > 1 else ""
    head = f"<div class=bar><h2>Curves</h2>{switch}</div>{colours(runs)}"
    return f"{head}<div class='charts{' several' if runs else ''}'>{figures(axes)}</div>"


def colours(names: Sequence[str]) -> str:
    """Return a legend of the colours of several runs or splits."""
    items = "".join(f"<li><i class={of_series(i)}></i>{escape(name)}</li>" for i, name in enumerate(names))
    return f"<ul class='legend names'>{items}</ul>" if items else ""


def of_series(number: int) -> str:
    """Return the class of the colour with a number from 0."""
    return f"s{number % len(style.LIGHT.series)}"


def some(entries: list[Any], most: int = MOST_ENTRIES) -> tuple[list[Any], str]:
    """Return at most `most` entries, the first and the last among them, and a remark where that omits some."""
    if len(entries) <= most:
        return entries, ""
    picked = sorted({round(i * (len(entries) - 1) / (most - 1)) for i in range(most)})
    return [entries[i] for i in picked], f"<p class=none>{len(picked)} of {len(entries):,}, spread evenly.</p>"


def table(heads: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table, which scrolls by itself where it is wider than the page. rows: HTML of complete `tr`."""
    head = "".join(f"<th scope=col>{explained(name)}</th>" for name in heads)
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class=wide tabindex=0>{made}</div>"


def pairs(entries: Sequence[tuple[str, str]]) -> str:
    """Return names and values, in columns where the page is wide."""
    return (
        f"<dl class=pairs>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in entries)}</dl>"
    )


def shares(entries: Sequence[tuple[int, float]]) -> str:
    """Return a bar that is divided into shares. entries: the number of each one's colour, and its size."""
    total = sum(size for _, size in entries)
    ends = [sum(size for _, size in entries[:i]) for i in range(len(entries) + 1)]
    bars = "".join(
        f'<rect x="{1000 * a / total:.1f}" width="{1000 * (b - a) / total:.1f}" height=10 class={of_series(n)} />'
        for (n, _), (a, b) in zip(entries, pairwise(ends), strict=True)
    )
    return f"<svg class=split viewBox='0 0 1000 10' preserveAspectRatio=none aria-hidden=true>{bars}</svg>"


def seconds(value: float) -> str:
    """Return a duration, with two digits where it is short."""
    return duration(value) if value >= 10 else f"{value:.2g}s"


def incidents(events: Sequence[tuple[str, str]]) -> str:
    """Return a list of unusual events, the newest first. events: where each was, and a sentence about it."""
    if not events:
        return "<h2>Incidents</h2><p class=none>No step skipped, no resume, no straggler.</p>"
    shown, remark = some(list(events))
    items = "".join(f"<li><b>{escape(where)}</b> {escape(what)}</li>" for where, what in reversed(shown))
    return f"<h2>Incidents</h2><ul class=events>{items}</ul>{remark}"
