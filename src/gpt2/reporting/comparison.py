"""The report on several runs next to each other."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from gpt2.reporting.charts import axes_of
from gpt2.reporting.figures import RunReport
from gpt2.reporting.glossary import explained
from gpt2.reporting.markup import curves, incidents, of_series, seconds, sections, shares, some, table

NOT_COMPARED = ("out_dir", "wandb_run_name")
"""Settings that differ in any two runs and say nothing about them."""


def body(reports: Sequence[RunReport]) -> str:
    """Return the content of the page about several runs: sections, each with an id."""
    events = [(f"{r.name}, step {step:,}", what) for r in reports for step, what in r.events]
    return sections(
        {
            "head": f"<h1>{len(reports)} runs</h1><div class=runs>{''.join(map(_card, range(99), reports))}</div>",
            "curves": curves(axes_of(reports), [r.name for r in reports]),
            "evaluations": _evaluations(reports),
            "time": _time(reports),
            "configuration": _differences(reports),
            "events": incidents(events),
        }
    )


def status(report: RunReport) -> str:
    """Return a line that says how a run stands, and when its last record was written."""
    when = ""
    if report.newest is not None:
        when = f" · last record {datetime.fromtimestamp(report.newest, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"<p class=state><b class={report.status.split()[0]}>{report.status}</b>{when}</p>"


def setting(value: Any) -> str:
    """Return a setting's value as a recipe has it."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _card(number: int, report: RunReport) -> str:
    """Return the most important figures of one run, under its name and colour."""
    headline = {name: (value, remark) for name, value, remark in report.headline()}
    figures = "".join(
        f"<div><dt>{explained(name)}</dt><dd>{escape(value)}<small>{explained(remark)}</small></dd></div>"
        for name, (value, remark) in headline.items()
        if name != "tokens"
    )
    facts = "".join(f"<li>{explained(fact)}</li>" for fact in report.facts())
    verdict = report.verdict
    sentence = "" if verdict.reference is None else f"<p class=none>{escape(verdict.sentence)}</p>"
    name = f"<h2><i class={of_series(number)}></i>{escape(report.name)}</h2>"
    content = f"<dl class=tiles>{figures}</dl><ul class=facts>{facts}</ul>{sentence}"
    return f"<article>{name}{status(report)}{content}</article>"


def _evaluations(reports: Sequence[RunReport]) -> str:
    """Return the validation losses of all runs, by step."""
    losses = [{e["step"]: e["val_loss"] for e in r.evaluations if e.get("val_loss") is not None} for r in reports]
    steps = sorted({step for run in losses for step in run})
    if not steps:
        return "<h2>Validation loss</h2><p class=none>No evaluation yet.</p>"
    shown, remark = some(steps)
    rows = []
    for step in reversed(shown):
        values = [run.get(step) for run in losses]
        measured = [value for value in values if value is not None]
        lowest = min(measured) if len(measured) > 1 else None
        cells = ""
        for value in values:
            best = " class=best" if value is not None and value == lowest else ""
            cells += f"<td{best}>{'–' if value is None else format(value, '.4f')}</td>"
        rows.append(f"<tr><th scope=row>{step:,}</th>{cells}</tr>")
    made = table(["step", *(r.name for r in reports)], rows)
    return f"<h2>Validation loss</h2>{made}<p class=none>The lowest of several at a step is marked.</p>{remark}"


def _time(reports: Sequence[RunReport]) -> str:
    """Return where the time of each run went."""
    names = list(dict.fromkeys(name for r in reports for name, _ in r.phases))
    if not names:
        return ""
    numbers, rows = {name: i for i, name in enumerate(names)}, []
    bars = "".join(
        f"<p class=none>{escape(r.name)}</p>{shares([(numbers[name], spent) for name, spent in r.phases])}"
        for r in reports
        if r.phases
    )
    for name in names:
        cells = ""
        for r in reports:
            spent = dict(r.phases).get(name)
            share = (
                "–"
                if spent is None
                else f"{seconds(spent)}<small> {spent / sum(dict(r.phases).values()):.1%}</small>"
            )
            cells += f"<td>{share}</td>"
        rows.append(f"<tr><th scope=row><i class={of_series(numbers[name])}></i>{name}</th>{cells}</tr>")
    return f"<h2>Where the time went</h2>{bars}{table(['phase', *(r.name for r in reports)], rows)}"


def differing(reports: Sequence[RunReport]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs, each with the value that every run has.

    A run whose settings are not known, as of a log of another program, differs from no other.
    """
    found = {}
    for name in dict.fromkeys(name for r in reports for name in r.settings if name not in NOT_COMPARED):
        values = [setting(r.settings[name]) if name in r.settings else "–" for r in reports]
        if len({value for value, r in zip(values, reports, strict=True) if r.settings}) > 1:
            found[name] = values
    return found


def _differences(reports: Sequence[RunReport]) -> str:
    """Return the settings that are not the same in all runs."""
    rows = [
        f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
        for name, values in differing(reports).items()
    ]
    if sum(bool(r.settings) for r in reports) < 2:
        return "<h2>Settings that differ</h2><p class=none>The settings of these runs are not known.</p>"
    if not rows:
        return "<h2>Settings that differ</h2><p class=none>All settings are the same.</p>"
    return f"<h2>Settings that differ</h2>{table(['setting', *(r.name for r in reports)], rows)}"
