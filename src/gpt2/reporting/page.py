"""The report on one run, or on several next to each other, as one HTML page."""

from collections.abc import Sequence
from html import escape
from typing import Any

from gpt2.reporting import comparison
from gpt2.reporting.charts import axes_of
from gpt2.reporting.figures import MEASURED, RunReport
from gpt2.reporting.glossary import explained
from gpt2.reporting.markup import curves, frame, incidents, of_series, pairs, seconds, sections, shares, some, table

MOST_SAMPLES = 12
"""Samples that are shown; of more, some that are spread evenly."""
MOST_CHARACTERS = 4000
"""Characters of a sample that are shown."""


def page(reports: Sequence[RunReport], defaults: dict[str, Any]) -> str:
    """Return the page about one or several runs. defaults: the default of each setting."""
    return frame(title_of([report.name for report in reports]), body(reports, defaults))


def title_of(names: Sequence[str]) -> str:
    """Return the title of a page about runs with these names."""
    return " · ".join(names)


def body(reports: Sequence[RunReport], defaults: dict[str, Any]) -> str:
    """Return the content of the page without its frame: sections, each with an id."""
    if len(reports) > 1:
        return comparison.body(reports)
    report = reports[0]
    return sections(
        {
            "head": _head(report),
            "curves": curves(axes_of(reports)),
            "evaluations": _evaluations(report),
            "time": _time(report),
            "samples": _samples(report),
            "configuration": _configuration(report, defaults),
            "events": incidents([(f"step {step:,}", what) for step, what in report.events]),
            "hardware": f"<h2>Hardware</h2>{pairs(report.hardware)}" if report.hardware else "",
        }
    )


def _head(report: RunReport) -> str:
    verdict, most = report.verdict, report.last_step
    tiles = "".join(
        f"<div><dt>{explained(name)}</dt><dd>{escape(value)}<small>{explained(remark)}</small></dd></div>"
        for name, value, remark in report.headline()
    )
    bar = ""
    if report.state != "finished" and most:
        bar = f"<progress max={most} value={min(report.step, most)}>{report.step} of {most}</progress>"
    source = f"<small>{escape(verdict.reference.source)}</small>" if verdict.reference else ""
    facts = "".join(f"<li>{explained(fact)}</li>" for fact in report.facts())
    return (
        f"<h1>{escape(report.name)}</h1>{comparison.status(report)}<ul class=facts>{facts}</ul>"
        f"{bar}<dl class=tiles>{tiles}</dl>"
        f"<p class='verdict {verdict.state}'>{escape(verdict.sentence)}{source}</p>"
    )


def _evaluations(report: RunReport) -> str:
    if not report.evaluations:
        return "<h2>Evaluations</h2><p class=none>No evaluation yet.</p>"
    names = [name for name in MEASURED if any(name in entry for entry in report.evaluations)]
    shown, remark = some(report.evaluations)
    if report.best and report.best not in shown:
        shown = sorted([*shown, report.best], key=lambda entry: entry["step"])
    rows = []
    for entry in reversed(shown):
        cells = "".join(f"<td>{'–' if entry.get(n) is None else format(entry[n], '.4f')}</td>" for n in names)
        best = " class=best" if entry is report.best else ""
        rows.append(f"<tr{best}><th scope=row>{entry['step']:,}</th>{cells}</tr>")
    note = "<p class=none>The best is marked.</p>" if report.best else ""
    return f"<h2>Evaluations</h2>{table([n.replace('_', ' ') for n in ('step', *names)], rows)}{note}{remark}"


def _time(report: RunReport) -> str:
    if not report.phases:
        return ""
    total, rows = sum(spent for _, spent in report.phases), []
    for i, (name, spent) in enumerate(report.phases):
        head = f"<th scope=row><i class={of_series(i)}></i>{name}</th>"
        rows.append(f"<tr>{head}<td>{seconds(spent)}</td><td>{spent / total:.1%}</td></tr>")
    bar = shares([(i, spent) for i, (_, spent) in enumerate(report.phases)])
    return f"<h2>Where the time went</h2>{bar}{table(['phase', 'time', 'share'], rows)}"


def _samples(report: RunReport) -> str:
    samples = [(r["step"], r.get("text", "")) for r in report.records if r["event"] == "sample"]
    if not samples:
        return ""
    shown, remark = some(samples, MOST_SAMPLES)
    items: list[str] = []
    for step, text in reversed(shown):
        text = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + " …"
        is_open = " open" if not items else ""
        items.append(
            f"<details id=sample-{step}{is_open}><summary>step {step:,}</summary><pre>{escape(text)}</pre></details>"
        )
    return f"<h2>Samples</h2>{remark}{''.join(items)}"


def _configuration(report: RunReport, defaults: dict[str, Any]) -> str:
    settings = report.settings
    if not settings:
        return "<h2>Configuration</h2><p class=none>There is no config.toml next to the log.</p>"
    chosen = [(k, comparison.setting(v)) for k, v in settings.items() if k not in defaults or defaults[k] != v]
    usual = [(k, comparison.setting(v)) for k, v in settings.items() if k in defaults and defaults[k] == v]
    rest = (
        f"<details id=defaults><summary>{len(usual)} settings have their defaults</summary>{pairs(usual)}</details>"
    )
    return f"<h2>Configuration</h2>{pairs(chosen)}{rest}"
