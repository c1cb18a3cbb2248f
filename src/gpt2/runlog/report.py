"""What there is to say about a run, worked out of its records: figures, no HTML."""

import statistics
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2.runlog.chart import short
from gpt2.runlog.console import duration
from gpt2.runlog.curves import Records, load, name_of, series, settings_of
from gpt2.runlog.verdict import Verdict, facts_of, judge

FIGURES = ("train_loss", "val_loss", "acc", "acc_norm")
"""What an evaluation may have measured."""
PARTS = ("data", "forward", "backward", "reduce", "optimizer")
"""What an update's time goes into, in its order."""


@dataclass(frozen=True)
class RunReport:
    """A run as its records tell it, at any moment from its first on."""

    name: str
    records: Records
    settings: dict[str, Any]
    """config.toml; empty where there is none."""

    @cached_property
    def step(self) -> int:
        """Updates made."""
        return max((r["step"] for r in self.records), default=0)

    @cached_property
    def state(self) -> str:
        """How the run stands: `finished`, `stopped`, or `open` for one that goes on or was broken off."""
        end = next((r for r in reversed(self.records) if r["event"] in ("end", "resume", "start")), {})
        if end.get("event") != "end":
            return "open"
        return "stopped" if end.get("stopped") else "finished"

    @cached_property
    def verdict(self) -> Verdict:
        """The run beside a reference of its kind."""
        return judge(self.records, self.settings)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """One row a step that was evaluated: `step`, and of `FIGURES` those measured there."""
        rows: dict[int, dict[str, Any]] = {}
        for r in self.records:
            if r["event"] == "eval":
                rows.setdefault(r["step"], {"step": r["step"]}).update({k: r[k] for k in FIGURES if k in r})
        return [rows[step] for step in sorted(rows)]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation loss."""
        measured = [row for row in self.evaluations if row.get("val_loss") is not None]
        return min(measured, key=lambda row: row["val_loss"]) if measured else None

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """The newest evaluation of the validation loss."""
        return next((row for row in reversed(self.evaluations) if row.get("val_loss") is not None), None)

    @cached_property
    def tokens(self) -> int | None:
        """Tokens trained on."""
        return max((r["tokens"] for r in self.records if "tokens" in r), default=None)

    @cached_property
    def seconds(self) -> float:
        """On the clock, without the time between a stop and a resume."""
        timed = [r for r in self.records if "time" in r]
        return sum(max(0.0, b["time"] - a["time"]) for a, b in pairwise(timed) if b["event"] != "resume")

    def typical(self, key: str) -> float | None:
        """The median of a figure of the updates."""
        _, values = series(self.records, "train", key)
        return statistics.median(values) if values else None

    @cached_property
    def time_split(self) -> list[tuple[str, float]]:
        """Seconds by what they went into; together all the time on the clock."""
        updates = [r["seconds"] for r in self.records if r["event"] == "train" and "seconds" in r]
        split = [(part, sum(s.get(part, 0.0) for s in updates)) for part in PARTS]
        for name, event in (("evaluation", "eval"), ("checkpoints", "checkpoint")):
            split.append((name, sum(r.get("seconds", 0.0) for r in self.records if r["event"] == event)))
        other = self.seconds - sum(seconds for _, seconds in split)
        return [(name, seconds) for name, seconds in [*split, ("other", other)] if seconds > 0]

    @cached_property
    def remaining(self) -> float | None:
        """Seconds until max_iters at the pace so far; None for a run that has ended or has no pace yet."""
        begun = min((r["step"] for r in self.records if r["event"] == "train"), default=self.step)
        if self.state != "open" or self.step <= begun or "max_iters" not in self.settings:
            return None
        return (self.settings["max_iters"] - self.step) * self.seconds / (self.step - begun + 1)

    @cached_property
    def events(self) -> list[tuple[int, str]]:
        """What did not go as usual: steps, and what happened there."""
        found = []
        for r in self.records:
            match r["event"]:
                case "resume":
                    found.append((r["step"], r.get("because", "resumed")))
                case "skip":
                    found.append((r["step"], "update skipped: loss or gradient not finite"))
                case "straggler":
                    who = f"process {r['rank']} on {r['host']}"
                    found.append((r["step"], f"{who} held the others up: {r['times']} times their time"))
                case "end" if r.get("stopped"):
                    found.append((r["step"], "stopped by a signal, and saved"))
        return found

    @cached_property
    def hardware(self) -> list[tuple[str, str]]:
        """Where it ran, as its last session says."""
        about = next((r for r in reversed(self.records) if "device" in r), {})
        found = [(key, str(about[key])) for key in ("device", "machine", "torch", "processes") if key in about]
        return found + [
            (key, str(self.settings[key]).lower()) for key in ("dtype", "compile") if key in self.settings
        ]

    def headline(self) -> list[tuple[str, str, str]]:
        """What one wants to know first: its name, its value, and a remark."""
        most, per_step = self.settings.get("max_iters"), facts_of(self.records, self.settings).get("tokens_per_step")
        rate, mfu = self.typical("tokens_per_second"), self.typical("mfu")
        left = f"about {duration(self.remaining)} to go" if self.remaining else ""
        losses = [
            (name, f"{row['val_loss']:.4f}" if row else "–", f"at step {row['step']:,}" if row else "")
            for name, row in (("validation loss", self.last), ("best", self.best))
        ]
        return [
            *losses,
            ("updates", f"{self.step:,}", f"of {most:,}" if most else ""),
            ("tokens", short(self.tokens or 0), f"{per_step:,} an update" if per_step else ""),
            ("time", duration(self.seconds), left),
            ("tokens a second", f"{rate:,.0f}" if rate is not None else "–", "median"),
            ("MFU", f"{mfu:.1%}" if mfu is not None else "–", "of peak, median"),
        ]

    def figures(self) -> dict[str, Any]:
        """The report as one object for other programs."""
        last, best = self.last or {}, self.best or {}
        return {
            "run": self.name,
            "state": self.state,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "val_loss": last.get("val_loss"),
            "best_val_loss": best.get("val_loss"),
            "best_step": best.get("step"),
            "tokens_per_second": self.typical("tokens_per_second"),
            "mfu": self.typical("mfu"),
            "seconds_by_part": {part: round(seconds, 3) for part, seconds in self.time_split},
            "incidents": [{"step": step, "what": what} for step, what in self.events],
            "verdict": self.verdict.state,
            "sentence": self.verdict.sentence,
        }


def report_on(run: Path, records: Records | None = None) -> RunReport:
    """The report on a run, of its log or of the `records` that are given. Raises UserError where there is no log."""
    return RunReport(name_of(run), load(run) if records is None else records, settings_of(run))
