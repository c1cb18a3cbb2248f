"""The progress of a sweep on stderr: one line that changes on a terminal, a line per run elsewhere."""

from time import monotonic
from typing import Any

from gpt2.runlog.console import LiveConsole, duration, stderr_console


class SweepConsole(LiveConsole):
    """Shows which run trains, how far it is, and the time left for all runs. The runs themselves print elsewhere."""

    SECONDS = 30.0
    """Seconds between lines about a run where there is no terminal."""

    def __init__(self) -> None:
        self.console = stderr_console()
        self.live = None
        if self.console.is_terminal:
            from rich.progress import Progress, TextColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                console=self.console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,  # a run's lines go to a file
                redirect_stderr=False,
            )
            self.task = self.live.add_task("")
        self.name, self.run, self.runs, self.total = "", 0, 0, 0.0
        self.done, self.done_here, self.here = 0.0, 0.0, 0.0
        self.first, self.end_step, self.per_step = 0, 0, 0
        self.began = self.shown = self.run_began = monotonic()

    def begin(self, runs: int, tokens: float) -> None:
        """Set the number of runs, and of tokens that they train on together."""
        self.runs, self.total, self.began = runs, tokens, monotonic()

    def skip(self, name: str, tokens: int, why: str) -> None:
        """Report a run that needs no training."""
        self.run += 1
        self.done += tokens
        self.note(f"{self.run}/{self.runs} · {name} · {why}")

    def start(self, name: str, first: int, end: int, tokens_per_step: int) -> None:
        """Begin to show a run that trains from the step `first` to the step `end`."""
        self.run += 1
        self.name, self.first, self.end_step, self.per_step = name, first, end, tokens_per_step
        self.here, self.run_began, self.shown = 0.0, monotonic(), monotonic()
        self._show("")

    def record(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Show what the run that trains has recorded."""
        if event in ("start", "resume"):
            self.done += max(0, step - self.first) * self.per_step  # by an earlier call
            self.first = max(step, self.first)
        if event == "train":
            self.here = max(0, step - self.first) * self.per_step
            self._show(f" · step {step}/{self.end_step} · loss {values['loss']:.4f}")

    def end(self, outcome: str) -> None:
        """Report how the run ended."""
        self.done_here += self.here
        self.done += max(0, self.end_step - self.first) * self.per_step
        self.here = 0.0
        spent = duration(monotonic() - self.run_began)
        left = f" · eta {eta}" if (eta := self.eta()) and self.run < self.runs else ""
        self.note(f"{self.run}/{self.runs} · {self.name} · {outcome} · {spent}{left}")

    def eta(self) -> str:
        """Return the time until all runs have ended, at the pace so far; nothing before there is a pace."""
        trained = self.done_here + self.here
        if not trained:
            return ""
        left = max(0.0, self.total - self.done - self.here)
        return duration(left * (monotonic() - self.began) / trained)

    def _show(self, figures: str) -> None:
        left = f" · eta of all {eta}" if (eta := self.eta()) else ""
        line = f"{self.run}/{self.runs}{left}{figures} · {self.name}"  # a narrow terminal cuts the end
        if self.live is not None:
            self.live.update(self.task, description=line)
        elif monotonic() - self.shown > self.SECONDS:
            self.shown = monotonic()
            self.note(line)
