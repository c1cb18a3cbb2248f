"""The report on runs that go on: what their page shows now."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.reporting import trainer
from gpt2.reporting.figures import RunReport, report_on
from gpt2.reporting.markup import frame
from gpt2.reporting.page import body, title_of
from gpt2.runlog.curves import Follower, name_of

REST = 20
"""A report rests this number of times as long as it took to make: watching a long run costs it little."""
LAST_LOOK_SECONDS = 5.0
"""An open page asks more often than this, and so learns how its run ended before the server ends."""


class FollowedRun:
    """Follows one run: reads what is new in its log, and sees whether its trainer works."""

    def __init__(self, run: Path, in_trainer: bool) -> None:
        self.run, self.in_trainer = run, in_trainer
        self.log = Follower(run)
        self.report = RunReport(name_of(run), [], {}, is_training=in_trainer)

    def look(self) -> bool:
        """Read what is new; returns whether the report changed. A log that cannot be read changes nothing."""
        try:
            has_grown = self.log.look()
        except (OSError, UserError):  # there is no log yet, or it is being replaced: what was read before stays
            has_grown = False
        is_training = self.in_trainer or trainer.is_training(self.run, self.report.newest)
        if not has_grown and is_training == self.report.is_training:
            return False
        self.report = report_on(self.run, self.log.thinned, is_training)
        return True


class LiveReport:
    """The report on runs, made again when somebody asks and a log has grown since.

    in_trainer: whether this process is the trainer of the (only) run.
    """

    def __init__(self, runs: Sequence[Path], defaults: dict[str, Any], in_trainer: bool = False) -> None:
        self.defaults = defaults
        self.followed = [FollowedRun(run, in_trainer) for run in runs]
        self.lock = threading.Lock()
        self.not_before = 0.0
        self.asked_at = float("-inf")
        self.was_asked = threading.Event()
        self.content = body([run.report for run in self.followed], defaults)

    def body(self) -> str:
        """Return the content of the page now; that of an empty run until there is a log."""
        with self.lock:
            began = self.asked_at = time.monotonic()
            if began >= self.not_before and self._look():
                self.content = body([run.report for run in self.followed], self.defaults)
                self.not_before = time.monotonic() + REST * (time.monotonic() - began)
            self.was_asked.set()
            return self.content

    def _look(self) -> bool:
        """Look at every run; returns whether a report changed."""
        return True in [run.look() for run in self.followed]

    def page(self) -> str:
        """Return the complete page."""
        return frame(title_of([run.report.name for run in self.followed]), self.body(), live=True)

    def wait_for_last_look(self) -> None:
        """Wait until an open page has asked for the end of its run, if a run has ended since it asked last."""
        with self.lock:
            has_ended = self._look() and any(run.report.state != "open" for run in self.followed)
            if not has_ended or time.monotonic() - self.asked_at > LAST_LOOK_SECONDS:
                return
            self.content = body([run.report for run in self.followed], self.defaults)
            self.was_asked.clear()
        self.was_asked.wait(LAST_LOOK_SECONDS)
