"""Facts about a run, worked out from its records: numbers and sentences, no HTML."""

import dataclasses
import re
import statistics
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.optim.schedule import steps_of_budgets
from gpt2.reporting import style, trainer
from gpt2.reporting.verdict import Verdict, facts_of, judge
from gpt2.runlog.console import duration
from gpt2.runlog.curves import Records, load, model_of, name_of, series, settings_of
from gpt2.runlog.thinned import Thinned

MEASURED = ("train_loss", "val_loss", "acc", "acc_norm")
"""What an evaluation may have measured."""
PHASES = ("data", "forward", "backward", "reduce", "optimizer")
"""The phases of a step, in their order."""


@dataclasses.dataclass(frozen=True)
class RunReport:
    """Holds a run's records, and what follows from them at any moment from its first record on."""

    name: str
    records: Records = dataclasses.field(repr=False)
    settings: dict[str, Any] = dataclasses.field(repr=False)
    """The contents of config.toml; empty where there is none."""
    is_training: bool = False
    """Whether a trainer holds the run's folder, or has written to its log in the last two minutes."""
    unreadable: int = 0
    """Number of lines of the log that are not records, and are skipped."""

    @cached_property
    def step(self) -> int:
        """Return the number of steps made."""
        return max((r["step"] for r in self.records), default=0)

    @cached_property
    def state(self) -> str:
        """Return `finished`, `stopped`, or `open` for a run that goes on or was broken off."""
        end = next((r for r in reversed(self.records) if r["event"] in ("end", "resume", "start")), {})
        if end.get("event") != "end":
            return "open"
        return "stopped" if end.get("stopped") else "finished"

    @property
    def status(self) -> str:
        """Return how the run stands in words: `starting`, `running`, `broken off`, `finished` or `stopped`."""
        if self.state != "open":
            return self.state
        if not self.is_training:
            return "broken off" if self.records else "no record yet"
        return "running" if self.records else "starting"

    @cached_property
    def newest(self) -> float | None:
        """Return the time of the last record, in Unix seconds; None where no record has one."""
        return max((r["time"] for r in self.records if "time" in r), default=None)

    @cached_property
    def verdict(self) -> Verdict:
        """Return how the run compares with a reference of its kind."""
        return judge(self.records, self.settings)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Return one entry for each step that was evaluated: `step`, and the values of MEASURED that it has."""
        found: dict[int, dict[str, Any]] = {}
        for r in self.records:
            if r["event"] == "eval":
                found.setdefault(r["step"], {"step": r["step"]}).update({k: r[k] for k in MEASURED if k in r})
        return [found[step] for step in sorted(found)]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """Return the evaluation with the lowest validation loss."""
        measured = [entry for entry in self.evaluations if entry.get("val_loss") is not None]
        return min(measured, key=lambda entry: entry["val_loss"]) if measured else None

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """Return the newest evaluation of the validation loss."""
        return next((entry for entry in reversed(self.evaluations) if entry.get("val_loss") is not None), None)

    @cached_property
    def tokens(self) -> int | None:
        """Return the number of tokens trained on."""
        return max((r["tokens"] for r in self.records if "tokens" in r), default=None)

    @cached_property
    def seconds(self) -> float:
        """Return the wall time of the run, without the time between a stop and a resume."""
        timed = [r for r in self.records if "time" in r]
        return sum(max(0.0, b["time"] - a["time"]) for a, b in pairwise(timed) if b["event"] != "resume")

    def typical(self, key: str) -> float | None:
        """Return the median of a figure of the steps; None where no record has it."""
        _, values = series(self.records, "train", key)
        return statistics.median(values) if values else None

    @cached_property
    def phases(self) -> list[tuple[str, float]]:
        """Return the seconds that each phase took; their sum is the wall time."""
        steps = [r["seconds"] for r in self.records if r["event"] == "train" and "seconds" in r]
        found = [(phase, sum(s.get(phase, 0.0) for s in steps)) for phase in PHASES]
        for name, event in (("evaluation", "eval"), ("checkpoints", "checkpoint")):
            found.append((name, sum(r.get("seconds", 0.0) for r in self.records if r["event"] == event)))
        other = self.seconds - sum(seconds for _, seconds in found)
        return [(name, seconds) for name, seconds in [*found, ("other", other)] if seconds > 0]

    @cached_property
    def last_step(self) -> int | None:
        """Return the step at which max_iters, max_tokens or max_epochs ends the run; None where it is not known."""
        per_step = facts_of(self.records, self.settings).get("tokens_per_step")
        if not per_step or "max_iters" not in self.settings:
            return self.settings.get("max_iters")
        tokens = self.tokens or self.step * per_step
        return min(steps_of_budgets(self.settings, per_step, self.train_tokens, self.step, tokens).values())

    @cached_property
    def remaining(self) -> float | None:
        """Return the seconds until the last step, or until max_minutes, at the pace so far.

        None after the end, and before there is a pace.
        """
        begun = min((r["step"] for r in self.records if r["event"] == "train"), default=self.step)
        if self.state != "open" or self.step <= begun or self.last_step is None:
            return None
        seconds = (self.last_step - self.step) * self.seconds / (self.step - begun + 1)
        if limit := self.settings.get("max_minutes"):
            seconds = min(seconds, max(0.0, limit * 60 - self.seconds))
        return seconds

    @cached_property
    def events(self) -> list[tuple[int, str]]:
        """Return the steps at which something unusual happened, each with a sentence about it."""
        found = []
        for r in self.records:
            match r["event"]:
                case "resume":
                    found.append((r["step"], r.get("because", "resumed")))
                case "skip":
                    found.append((r["step"], "step skipped: the loss or the gradient is not finite"))
                case "straggler":
                    who = f"process {r['rank']} on {r['host']}"
                    found.append((r["step"], f"{who} was slow: it took {r['times']} times as long as the others"))
                case "end" if r.get("stopped"):
                    found.append((r["step"], "stopped by a signal, and saved"))
        return found

    def _logged(self, key: str) -> Any:
        """Return the newest value of a key that the records of a start or a resume have; None where none has it."""
        return next((r[key] for r in reversed(self.records) if r["event"] in ("start", "resume") and key in r), None)

    @cached_property
    def hardware(self) -> list[tuple[str, str]]:
        """Return what the run's last process ran on."""
        starts = (r for r in reversed(self.records) if r["event"] in ("start", "resume"))
        about = next((r for r in starts if "device" in r), {})
        found = [(key, str(about[key])) for key in ("device", "machine", "torch", "processes") if key in about]
        return found + [
            (key, str(self.settings[key]).lower()) for key in ("dtype", "compile") if key in self.settings
        ]

    @cached_property
    def parameters(self) -> int | None:
        """Return the number of parameters: as logged, or for older logs as the settings give it."""
        if type(logged := self._logged("parameters")) is int:
            return logged
        with suppress(KeyError, TypeError, UserError):
            from gpt2.accounting import num_params  # here, with PyTorch behind it

            return num_params(model_of(self.settings))
        return None

    @cached_property
    def train_tokens(self) -> int | None:
        """Return the number of tokens in an epoch; None where the log does not have it."""
        total = self._logged("train_tokens")
        if total is None and (data := self._logged("data")):  # a dataset of one file may be known by its length
            known = re.fullmatch(r"([0-9]{1,18}) tokens", data.get("train", ""))
            total = int(known[1]) if known else None
        return total if type(total) is int and total > 0 else None

    @cached_property
    def epochs(self) -> float | None:
        """Return how often each training token was seen; None where the log does not have their number."""
        return self.tokens / self.train_tokens if self.tokens is not None and self.train_tokens else None

    def facts(self) -> list[str]:
        """Return what identifies the run, each in a few words: model, data, device, memory, start, versions."""
        found = []
        if self.parameters:
            found.append(f"{style.about(self.parameters)} parameters")
        if self.tokens:
            seen = f"{style.about(self.tokens)} tokens"
            found.append(f"{seen}, {self.epochs:.3g} epochs" if self.epochs is not None else seen)
        if device := self._logged("device"):
            processes = self._logged("processes")
            found.append(f"{processes} × {device}" if type(processes) is int and processes > 1 else str(device))
        if sizes := [r["memory"] for r in self.records if type(r.get("memory")) is int]:
            found.append(f"peak memory {style.memory(max(sizes))}")
        begun = next((r["time"] for r in self.records if r["event"] in ("start", "resume") and "time" in r), None)
        if begun:
            found.append(f"started {datetime.fromtimestamp(begun, UTC):%Y-%m-%d %H:%M} UTC")
        for name, key in (("gpt2", "version"), ("PyTorch", "torch")):
            if version := self._logged(key):
                found.append(f"{name} {version}")
        if self.unreadable:
            found.append(unreadable_lines(self.unreadable))
        return found

    def headline(self) -> list[tuple[str, str, str]]:
        """Return the most important figures: each one's name, value and remark."""
        per_step = facts_of(self.records, self.settings).get("tokens_per_step")
        rate, mfu = self.typical("tokens_per_second"), self.typical("mfu")
        left = f"about {duration(self.remaining)} to go" if self.remaining else ""
        losses = [
            (name, f"{entry['val_loss']:.4f}" if entry else "–", f"at step {entry['step']:,}" if entry else "")
            for name, entry in (("validation loss", self.last), ("best", self.best))
        ]
        return [
            *losses,
            ("steps", f"{self.step:,}", f"of {self.last_step:,}" if self.last_step else ""),
            ("tokens", style.short(self.tokens or 0), f"{per_step:,} per step" if per_step else ""),
            ("time", duration(self.seconds), left),
            ("tokens per second", f"{rate:,.0f}" if rate is not None else "–", "median"),
            ("MFU", f"{mfu:.1%}" if mfu is not None else "–", "of peak, median"),
        ]

    def figures(self) -> dict[str, Any]:
        """Return the report as one JSON object for other programs."""
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
            "seconds_by_part": {phase: round(seconds, 3) for phase, seconds in self.phases},
            "incidents": [{"step": step, "what": what} for step, what in self.events],
            "unreadable_lines": self.unreadable,
            "verdict": self.verdict.state,
            "sentence": self.verdict.sentence,
        }


def unreadable_lines(count: int) -> str:
    """Return a sentence about the lines of a log that are not records."""
    return (
        f"{count:,} lines of the log cannot be read and are skipped"
        if count > 1
        else ("1 line of the log cannot be read and is skipped")
    )


def report_on(run: Path, log: Thinned | None = None, is_training: bool | None = None) -> RunReport:
    """Return the report on a run, made from its log, or from what was read of that already.

    is_training: whether a trainer works on the run; None looks for one. Raises UserError where there is no log.
    """
    read = load(run) if log is None else log
    found = RunReport(name_of(run), read.records, settings_of(run), unreadable=read.unreadable)
    return dataclasses.replace(
        found, is_training=trainer.is_training(run, found.newest) if is_training is None else is_training
    )
