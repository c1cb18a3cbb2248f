"""Sends the records of a run to Weights & Biases, trackio and TensorBoard, each if its setting is on.

A run does not depend on any of them: a tracker that fails or does not answer is reported in one line and gets no
further records.
"""

import html
import importlib
import queue
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, NoReturn, Protocol

from gpt2.errors import Log, UserError, first_line

NUMBERS = {
    "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory",
    "train_loss", "val_loss", "acc", "acc_norm",
}  # fmt: skip
"""Names of the values in `train` and `eval` records that become curves."""

MAX_WAITING = 10_000
"""Maximum number of records that wait for a service."""
TIMEOUT = 10.0
"""Maximum number of seconds that a run waits for a service to take a record when `MAX_WAITING` records wait."""
FINISH_TIMEOUT = 30.0
"""Maximum number of seconds that a service has for the remaining records at the end of a run."""
TENSORBOARD_SUFFIX = ".gpt2"
"""End of the name of TensorBoard's files, by which a run recognises those of an earlier run."""


class Tracker(Protocol):
    """A tracker receives every record of a run, as `LogWriter.write` does. The first one is `start` or `resume`."""

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Receive the record `event` of an optimizer step, with its values."""

    def close(self) -> None:
        """Finish. No record follows."""


class Trackers:
    """Holds the trackers of a run, each under the name of its setting.

    `log_line` receives a line about a tracker that fails.
    """

    def __init__(self, log_line: Log) -> None:
        self.log_line = log_line
        self.running: dict[str, Tracker] = {}

    def open(self, setting: str, make: Callable[[], Tracker]) -> None:
        """Send every record from now on to the tracker that `make` returns."""

        def start() -> None:
            self.running[setting] = make()

        self._attempt(setting, start, (Exception, SystemExit))  # Ctrl-C at a question about a login ends the run

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Send a record to all trackers."""
        for setting, tracker in list(self.running.items()):
            self._attempt(setting, lambda tracker=tracker: tracker.log(event, step, values))

    def close(self) -> None:
        """Let all trackers finish. Ctrl-C ends the wait for one of them."""
        for setting, tracker in list(self.running.items()):
            self._attempt(setting, tracker.close)

    def _attempt(
        self,
        setting: str,
        work: Callable[[], None],
        failures: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    ) -> None:
        """Do `work` for the tracker of a setting; after one of the `failures`, report it and drop the tracker."""
        try:
            work()
        except failures as error:  # a network, a full disk or a library that exits must not end a run
            self.running.pop(setting, None)
            self.log_line(f"{setting} failed ({first_line(error)}); the run goes on without it")


def require(module: str, setting: str) -> None:
    """Raise UserError unless the `module` that a setting needs can be imported."""
    package = module.rsplit(".", 1)[-1]
    try:
        importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, package):
            raise UserError(
                f"{setting} needs the {package} package; pip install {package}, or leave it off"
            ) from None
        raise UserError(
            f"{setting}: the {package} package is broken ({first_line(error)}); install it again, or leave it off"
        ) from None


class Background:
    """Does work in a daemon thread, in order, so that a run does not hang with a service.

    `release` is called in another thread when the work failed or hangs. It undoes what keeps the process from ending.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self.release = release
        self.work: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_WAITING)
        self.error: BaseException | None = None
        self.ended = Event()
        Thread(target=self._run, daemon=True).start()

    def do(self, work: Callable[[], None] | None) -> None:
        """Do `work` later. Raises the exception of earlier work, or TimeoutError after TIMEOUT seconds."""
        if self.error is not None:
            self._give_up(self.error)
        try:
            self.work.put(work, timeout=TIMEOUT)
        except queue.Full:
            self._give_up(self.error or no_answer(TIMEOUT))

    def finish(self) -> None:
        """Wait for the work. Raises its exception, or TimeoutError after FINISH_TIMEOUT seconds."""
        self.do(None)
        try:
            error = self.error if self.ended.wait(FINISH_TIMEOUT) else no_answer(FINISH_TIMEOUT)
        except KeyboardInterrupt as interrupt:
            error = interrupt
        if error is not None:
            self._give_up(error)

    def _run(self) -> None:
        """Do the work in the thread, until the work is None or fails."""
        try:
            while (work := self.work.get()) is not None:
                work()
        except BaseException as error:
            self.error = error
        self.ended.set()

    def _give_up(self, error: BaseException) -> NoReturn:
        """Release what may hang, and raise the error."""
        releasing = Thread(target=self.release, daemon=True)
        releasing.start()
        releasing.join(TIMEOUT)
        raise error


def no_answer(seconds: float) -> TimeoutError:
    """Return the exception for a service that did not answer for some seconds."""
    return TimeoutError(f"no answer for {seconds:g} seconds")


class ServiceTracker:
    """Sends a run to a package with the interface of Weights & Biases, which is used only in the background.

    The package gets a new run of the same name when training resumes or goes back to a checkpoint after a loss spike,
    because these packages cannot replace a step.
    """

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        self.settings = {"project": project, "name": name, "config": config}
        self.run: Any = None
        self.background = Background(self._release)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Send a record in the background. Raises the exception of earlier work."""
        self.background.do(lambda: self._log(event, step, values))

    def close(self) -> None:
        """Finish the run of the package and wait for it. Raises the exception of the work, or TimeoutError."""
        self.background.do(self._finish)
        self.background.finish()

    def _log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Send a record to the package."""
        if event in ("start", "resume"):
            self._finish()
            self.run = self._begin()
        elif event == "sample":
            self.run.log({"sample": self._page(values["text"])}, step=step)
        elif shown := numbers(event, values):
            self.run.log(shown, step=step)

    def _finish(self) -> None:
        """Finish the run of the package, if it has begun."""
        if self.run is not None:
            self.run.finish()

    def _begin(self) -> Any:
        """Begin a run of the package, and return it."""
        raise NotImplementedError

    def _page(self, text: str) -> Any:
        """Return the package's object that shows a text unchanged."""
        raise NotImplementedError

    def _release(self) -> None:
        """Undo what keeps the process from ending."""


class WandbTracker(ServiceTracker):
    """Sends a run to Weights & Biases."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        if wandb.setup().settings.mode == "online":
            wandb.login(verify=False)  # may ask at the terminal, which the background must not
        super().__init__(project, name, config)

    def _begin(self) -> Any:
        # with its console on, wandb sends what is printed, and printing waits for it
        return self.wandb.init(**self.settings, settings=self.wandb.Settings(console="off"))

    def _page(self, text: str) -> Any:
        return self.wandb.Html(f"<pre>{html.escape(text)}</pre>")

    def _release(self) -> None:
        with suppress(BaseException):
            self.wandb.teardown()  # first removes the atexit hook, which waits for wandb's process without a limit


class TrackioTracker(ServiceTracker):
    """Sends a run to trackio, which keeps it on this machine."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import trackio

        self.trackio = trackio
        super().__init__(project, name, config)

    def _begin(self) -> Any:
        with redirect_stdout(sys.stderr):  # standard output is for --json
            return self.trackio.init(**self.settings)

    def _page(self, text: str) -> Any:
        return self.trackio.Markdown(indented(text))

    def _finish(self) -> None:
        with redirect_stdout(sys.stderr):
            super()._finish()


class TensorBoardTracker:
    """Writes TensorBoard's event files, whose names end in `.gpt2`. A resume replaces later steps."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.open = partial(SummaryWriter, str(folder), filename_suffix=TENSORBOARD_SUFFIX)
        self.writer: Any = None

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Write a record to the event file."""
        if event in ("start", "resume"):
            self.close()
            self.writer = self.open(purge_step=step + 1 if event == "resume" else None)
        elif event == "sample":
            self.writer.add_text("sample", indented(values["text"]), step)
        for name, value in numbers(event, values).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the event file, if there is one."""
        if self.writer is not None:
            self.writer.close()


def numbers(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the values in a record that become curves."""
    return {name: values[name] for name in values if name in NUMBERS} if event in ("train", "eval") else {}


def indented(text: str) -> str:
    """Return text that Markdown shows unchanged."""
    return "".join(f"    {line}\n" for line in text.splitlines())
