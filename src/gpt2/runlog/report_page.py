"""The report on a run as one HTML page that needs nothing else: no network, no file beside it."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from html import escape
from importlib import resources
from itertools import pairwise
from typing import Any, Literal

from gpt2.runlog.chart import Chart, Line, svg
from gpt2.runlog.console import duration
from gpt2.runlog.curves import counts, extremes, series, smooth, smoothing_for
from gpt2.runlog.report import FIGURES, RunReport

MOST_ROWS, MOST_SAMPLES = 100, 12
"""Evaluations or incidents, and samples, that are shown; of more, some spread evenly."""
MOST_CHARACTERS = 4000
"""Of a sample that are shown."""
STATES = {"open": "running, or broken off", "finished": "finished", "stopped": "stopped"}


def page(report: RunReport, defaults: dict[str, Any]) -> str:
    """HTML of the report. defaults: of the settings."""
    return frame(report.name, body(report, defaults))


def frame(name: str, content: str, live: bool = False) -> str:
    """The page around what `body` gave. live: it asks for a new `body` again and again."""
    return (
        f"<!doctype html><html lang=en{' data-live' if live else ''}><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{content_policy()}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'><link rel=icon href='data:,'>"
        f"<title>{escape(name)} · gpt2</title><style>{_part('css')}</style></head>"
        f"<body><main>{content}</main><script>{_part('js')}</script></body></html>\n"
    )


def content_policy() -> str:
    """The page's Content-Security-Policy.

    Texts of a run are escaped; should one slip through, the browser runs no script but ours and asks nobody else.
    """
    digest = base64.b64encode(hashlib.sha256(_part("js").encode()).digest()).decode()
    scripts, styles = f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'"
    return f"default-src 'none'; {styles}; {scripts}; connect-src 'self'; img-src data:"


def _part(kind: Literal["css", "js"]) -> str:
    """The page's style sheet or script."""
    return resources.files("gpt2.runlog").joinpath(f"page.{kind}").read_text(encoding="utf-8")


def body(report: RunReport, defaults: dict[str, Any]) -> str:
    """What the page says, without its frame: sections with an id each."""
    parts = {
        "head": _head(report),
        "curves": _curves(report),
        "evaluations": _evaluations(report),
        "time": _time(report),
        "samples": _samples(report),
        "configuration": _configuration(report, defaults),
        "events": _events(report),
        "hardware": _pairs("Hardware", report.hardware),
    }
    return "".join(f"<section id={name}>{content}</section>" for name, content in parts.items() if content)


def _head(report: RunReport) -> str:
    verdict, most = report.verdict, report.settings.get("max_iters")
    newest = max((r["time"] for r in report.records if "time" in r), default=None)
    when = "" if newest is None else f" · last record {datetime.fromtimestamp(newest, UTC):%Y-%m-%d %H:%M:%S} UTC"
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in report.headline()
    )
    bar = ""
    if report.state != "finished" and most:
        bar = f"<progress max={most} value={min(report.step, most)}>{report.step} of {most}</progress>"
    source = f"<small>{escape(verdict.reference.source)}</small>" if verdict.reference else ""
    return (
        f"<h1>{escape(report.name)}</h1><p class=state><b class={report.state}>{STATES[report.state]}</b>{when}</p>"
        f"{bar}<dl class=tiles>{tiles}</dl>"
        f"<p class='verdict {verdict.state}'>{escape(verdict.sentence)}{source}</p>"
    )


def _curves(report: RunReport) -> str:
    records = report.records

    def line(name: str, kind: Any, key: str, event: str = "train") -> Line:
        steps, values = extremes(records, key) if event == "train" else series(records, event, key)
        return Line(name, kind, [float(step) for step in steps], values)

    def smoothed(raw: Line, name: str, key: str) -> list[Line]:
        steps, values = series(records, "train", key)
        sizes = counts(records, key)
        course = smooth(values, smoothing_for(sum(sizes)), sizes)
        return [raw, Line(name, "train", [float(step) for step in steps], course)]

    reference = report.verdict.reference
    band, levels = None, []
    if reference and reference.band:
        b = reference.band
        low, high = [v - b.margin for v in b.low], [v + b.margin for v in b.high]
        band = (f"{reference.name}, validation", [float(step) for step in b.steps], low, high)
    if reference:
        levels = [(level.label, level.val_loss) for level in reference.levels]
    loss = [
        *smoothed(line("train, each update", "raw", "loss"), "train, smoothed", "loss"),
        line("validation", "val", "val_loss", "eval"),
    ]
    norm = smoothed(line("each update", "raw", "grad_norm"), "smoothed", "grad_norm")
    settled = report.step / 25 if report.step >= 200 else 0  # the fall at the start would flatten all the rest
    charts = [Chart("Loss, nats a token", loss, log=True, fit_from=settled, band=band, levels=levels)]
    hellaswag = [line("acc_norm", "val", "acc_norm", "eval"), line("acc", "third", "acc", "eval")]
    if hellaswag[0].xs:
        charts.append(Chart("HellaSwag", hellaswag, levels=[("chance", 0.25)]))
    charts += [
        Chart("Learning rate", [line("learning rate", "train", "lr")], from_zero=True),
        Chart("Gradient norm", norm, log=True),
        Chart("Tokens a second", [line("tokens a second", "train", "tokens_per_second")], from_zero=True),
    ]
    return "<h2>Curves</h2><div class=charts>" + "".join(svg(chart, report.step) for chart in charts) + "</div>"


def _some(rows: list[Any], most: int = MOST_ROWS) -> tuple[list[Any], str]:
    """At most so many of them, first and last among them, and a remark where that leaves some out."""
    if len(rows) <= most:
        return rows, ""
    picked = sorted({round(i * (len(rows) - 1) / (most - 1)) for i in range(most)})
    return [rows[i] for i in picked], f"<p class=none>{len(picked)} of {len(rows):,}, spread evenly.</p>"


def _samples(report: RunReport) -> str:
    samples = [(r["step"], r.get("text", "")) for r in report.records if r["event"] == "sample"]
    if not samples:
        return ""
    shown, remark = _some(samples, MOST_SAMPLES)
    items: list[str] = []
    for step, text in reversed(shown):
        text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
        is_open = " open" if not items else ""
        items.append(
            f"<details id=sample-{step}{is_open}><summary>step {step:,}</summary><pre>{escape(text)}</pre></details>"
        )
    return f"<h2>Samples</h2>{remark}{''.join(items)}"


def _evaluations(report: RunReport) -> str:
    if not report.evaluations:
        return "<h2>Evaluations</h2><p class=none>No evaluation yet.</p>"
    names = [name for name in FIGURES if any(name in row for row in report.evaluations)]
    heads = "".join(f"<th scope=col>{escape(name.replace('_', ' '))}</th>" for name in ("step", *names))
    shown, remark = _some(report.evaluations)
    if report.best and report.best not in shown:
        shown = sorted([*shown, report.best], key=lambda row: row["step"])
    rows = []
    for row in reversed(shown):
        cells = "".join(f"<td>{'–' if row.get(n) is None else format(row[n], '.4f')}</td>" for n in names)
        best = " class=best" if row is report.best else ""
        rows.append(f"<tr{best}><th scope=row>{row['step']:,}</th>{cells}</tr>")
    note = "<p class=none>The best is marked.</p>" if report.best else ""
    return f"<h2>Evaluations</h2>{_table(heads, rows)}{note}{remark}"


def _table(heads: str, rows: list[str]) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class=wide tabindex=0>{table}</div>"


def _time(report: RunReport) -> str:
    split = report.time_split
    if not split:
        return ""
    total = sum(seconds for _, seconds in split)
    ends = [sum(seconds for _, seconds in split[:i]) for i in range(len(split) + 1)]
    bars = "".join(
        f'<rect x="{1000 * a / total:.1f}" width="{1000 * (b - a) / total:.1f}" height=10 class=p{i % 8} />'
        for i, (a, b) in enumerate(pairwise(ends))
    )
    rows = []
    for i, (name, seconds) in enumerate(split):
        said = duration(seconds) if seconds >= 10 else f"{seconds:.2g}s"
        part = f"<th scope=row><i class=p{i % 8}></i>{name}</th>"
        rows.append(f"<tr>{part}<td>{said}</td><td>{seconds / total:.1%}</td></tr>")
    heads = "<th scope=col>part</th><th scope=col>time</th><th scope=col>share</th>"
    bar = f"<svg class=split viewBox='0 0 1000 10' preserveAspectRatio=none aria-hidden=true>{bars}</svg>"
    return f"<h2>Where the time went</h2>{bar}{_table(heads, rows)}"


def _events(report: RunReport) -> str:
    if not report.events:
        return "<h2>Incidents</h2><p class=none>No update skipped, no resume, no straggler.</p>"
    shown, remark = _some(report.events)
    items = "".join(f"<li><b>step {step:,}</b> {escape(what)}</li>" for step, what in reversed(shown))
    return f"<h2>Incidents</h2><ul class=events>{items}</ul>{remark}"


def _configuration(report: RunReport, defaults: dict[str, Any]) -> str:
    settings = report.settings
    if not settings:
        return "<h2>Configuration</h2><p class=none>There is no config.toml beside the log.</p>"
    chosen = [(k, _said(v)) for k, v in settings.items() if k not in defaults or defaults[k] != v]
    usual = [(k, _said(v)) for k, v in settings.items() if k in defaults and defaults[k] == v]
    rest = (
        f"<details id=defaults><summary>{len(usual)} settings have their defaults</summary>{_list(usual)}</details>"
    )
    return f"<h2>Configuration</h2>{_list(chosen)}{rest}"


def _said(value: Any) -> str:
    """A setting's value as a recipe has it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _pairs(title: str, pairs: list[tuple[str, str]]) -> str:
    return f"<h2>{title}</h2>{_list(pairs)}" if pairs else ""


def _list(pairs: list[tuple[str, str]]) -> str:
    return f"<dl class=pairs>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in pairs)}</dl>"
