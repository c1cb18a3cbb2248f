"""Figures of several runs next to each other, with the best of each marked: numbers, no HTML."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpt2.errors import UserError
from gpt2.reporting import style
from gpt2.reporting.comparison import differing
from gpt2.reporting.figures import RunReport
from gpt2.runlog.console import duration
from gpt2.runlog.curves import axis_position


@dataclass(frozen=True)
class Figure:
    """A figure is one measurement of every run."""

    key: str
    """Name in JSON."""
    title: str
    """Name in a table."""
    values: list[Any]
    """One value for each run; None where it has none."""
    write: Callable[[Any], str] = str
    """Writes a value as text."""
    pick: Callable[[list[Any]], Any] | None = None
    """Picks the best of several values; None where no value is better than another."""

    @property
    def best(self) -> list[int]:
        """Return the numbers of the runs with the best value, as it is written; empty where all are the same."""
        known = [value for value in self.values if value is not None]
        if self.pick is None or len({self.write(value) for value in known}) < 2:
            return []
        best = self.write(self.pick(known))
        return [i for i, value in enumerate(self.values) if value is not None and self.write(value) == best]


@dataclass(frozen=True)
class Comparison:
    """Compares runs: the settings that differ, and their figures."""

    reports: Sequence[RunReport]
    settings: dict[str, list[str]]
    """Settings that differ, each with one text for every run."""
    figures: list[Figure]
    step: int | None
    """Newest step at which all runs were evaluated."""
    tokens: int | None
    """Number of tokens after which all runs were evaluated."""

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        runs = [
            report.figures() | {figure.key: figure.values[i] for figure in self.figures}
            for i, report in enumerate(self.reports)
        ]
        best = {figure.key: figure.best for figure in self.figures if figure.best}
        return {
            "runs": runs,
            "best": best,
            "settings": self.settings,
            "same_step": self.step,
            "same_tokens": self.tokens,
        }


def compare(reports: Sequence[RunReport]) -> Comparison:
    """Return how runs compare. Losses are compared at their best, at their end, and at the same step and tokens.

    None of them is the best where datasets or `loss_after` differ, because their losses are of different tokens.
    """
    measured = {(r.settings.get("dataset"), r.settings.get("loss_after") or "") for r in reports}
    least = min if len(measured) == 1 else None
    losses = [{e["step"]: e["val_loss"] for e in r.evaluations if e.get("val_loss") is not None} for r in reports]
    shared = set.intersection(*map(set, losses)) if losses else set()
    step = max(shared, default=None)
    tokens, at_tokens = _at_same_tokens(reports, losses)
    train = [next((e["train_loss"] for e in reversed(r.evaluations) if e.get("train_loss")), None) for r in reports]
    last = [r.last["val_loss"] if r.last else None for r in reports]
    best = [r.best["val_loss"] if r.best else None for r in reports]
    figures = [
        Figure("status", "state", [r.status for r in reports]),
        Figure("best_val_loss", "best val loss", best, _loss, least),
        Figure("val_loss", "last val loss", last, _loss, least),
        Figure("train_loss", "last train loss", train, _loss, least),
    ]
    at_step = [run[step] for run in losses] if step is not None else []
    if step is not None:
        figures.append(Figure("val_loss_at_same_step", f"val loss at step {step:,}", at_step, _loss, least))
    if tokens is not None and at_tokens != at_step:
        title = f"val loss at {style.about(tokens)} tokens"
        figures.append(Figure("val_loss_at_same_tokens", title, at_tokens, _loss, least))
    figures += [
        Figure("step", "steps", [r.step for r in reports], _count),
        Figure("tokens", "tokens", [r.tokens for r in reports], _about),
        Figure("parameters", "parameters", [r.parameters for r in reports], _about),
        Figure("seconds", "time", [round(r.seconds, 3) for r in reports], duration),
        Figure("tokens_per_second", "tokens/s", [r.typical("tokens_per_second") for r in reports], _count, max),
        Figure("mfu", "MFU", [r.typical("mfu") for r in reports], lambda value: f"{value:.1%}", max),
    ]
    return Comparison(reports, differing(reports), figures, step, tokens)


def _at_same_tokens(
    reports: Sequence[RunReport], losses: Sequence[dict[int, float]]
) -> tuple[int | None, list[float | None]]:
    """Return the number of tokens after which all runs were evaluated, and each one's last loss up to then.

    None where a run has no such loss or no count of tokens.
    """
    curves: list[list[tuple[int, float]]] = []
    with suppress(UserError):
        for report, run in zip(reports, losses, strict=True):
            position = axis_position(report.records, "tokens", report.settings, report.name)
            curves.append([(int(position(step)), run[step]) for step in sorted(run)])
    if len(curves) < len(reports) or not all(curves):
        return None, []
    tokens = min(curve[-1][0] for curve in curves)
    found = [[loss for seen, loss in curve if seen <= tokens] for curve in curves]
    return (tokens, [values[-1] for values in found]) if tokens and all(found) else (None, [])


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _about(value: int) -> str:
    return style.about(value)
