"""Weights & Biases, trackio and TensorBoard, each behind a switch. A run does not depend on any of them.

A tracker that fails, or does not answer, is reported in one line and gets no further records.
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

from gpt2.errors import UserError, first_line

NUMBERS = {
    "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory",
    "train_loss", "val_loss", "acc", "acc_norm",
}  # fmt: skip
"""Values of `train` and `eval` records that become curves."""

MOST_WAITING = 10_000
"""Records that may wait for a service."""
PATIENCE = 10.0
"""Seconds that a run waits for a service with that many records, when the service does nothing."""
FINISHING = 30.0
"""Seconds that a service gets at the end of a run to take the remaining records."""
TENSORBOARD_SUFFIX = ".gpt2"
"""End of the name of TensorBoard's files, by which a run recognises those of an earlier run."""


class Tracker(Protocol):
    """A tracker gets every record of a run, as `LogWriter.write` gets it. The first is `start` or `resume`."""

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Take a record."""

    def close(self) -> None:
        """Finish; no record follows."""


class Trackers:
    """Holds the trackers of a run, each under its setting. `note` receives a line about one that fails."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.running: dict[str, Tracker] = {}

    def open(self, switch: str, make: Callable[[], Tracker]) -> None:
        """Give every record from here on to the tracker that `make` returns."""

        def work() -> None:
            self.running[switch] = make()

        self._attempt(switch, work, (Exception, SystemExit))  # Ctrl-C at a question about a login ends the run

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Give a record to all trackers."""
        for switch, tracker in list(self.running.items()):
            self._attempt(switch, lambda tracker=tracker: tracker.log(event, step, values))

    def close(self) -> None:
        """Let all trackers finish. Ctrl-C ends the wait for one of them."""
        for switch, tracker in list(self.running.items()):
            self._attempt(switch, tracker.close)

    def _attempt(
        self,
        switch: str,
        work: Callable[[], None],
        failures: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
    ) -> None:
        try:
            work()
        except failures as error:  # a network, a full disk or a library that exits must not end a run
            self.running.pop(switch, None)
            self.note(f"{switch} failed ({first_line(error)}); the run goes on without it")


def require(module: str, switch: str) -> None:
    """Raise UserError unless the package behind `switch` can be imported."""
    package = module.rsplit(".", 1)[-1]
    try:
        importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in (module, package):
            raise UserError(f"{switch} needs the {package} package; pip install {package}, or leave it off") from None
        raise UserError(
            f"{switch}: the {package} package is broken ({first_line(error)}); install it again, or leave it off"
        ) from None


class Background:
    """Does work in a daemon thread, in order, so that a service that hangs does not hang the run.

    release: called in another thread when the work failed or hangs, so that nothing keeps the process from ending.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self.release = release
        self.work: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self.error: BaseException | None = None
        self.ended = Event()
        Thread(target=self._run, daemon=True).start()

    def do(self, work: Callable[[], None] | None) -> None:
        """Do `work` later. Raises what earlier work raised, or TimeoutError after PATIENCE seconds."""
        if self.error is not None:
            self._give_up(self.error)
        try:
            self.work.put(work, timeout=PATIENCE)
        except queue.Full:
            self._give_up(self.error or no_answer(PATIENCE))

    def finish(self) -> None:
        """Wait for the work. Raises what it raised, or TimeoutError if it takes longer than FINISHING seconds."""
        self.do(None)
        try:
            error = self.error if self.ended.wait(FINISHING) else no_answer(FINISHING)
        except KeyboardInterrupt as interrupt:
            error = interrupt
        if error is not None:
            self._give_up(error)

    def _run(self) -> None:
        try:
            while (work := self.work.get()) is not None:
                work()
        except BaseException as error:
            self.error = error
        self.ended.set()

    def _give_up(self, error: BaseException) -> NoReturn:
        releasing = Thread(target=self.release, daemon=True)
        releasing.start()
        releasing.join(PATIENCE)
        raise error


def no_answer(seconds: float) -> TimeoutError:
    """Return the exception for a service that hangs."""
    return TimeoutError(f"no answer for {seconds:g} seconds")


class ServiceTracker:
    """Sends a run to a package with the interface of Weights & Biases, which is only used in the background.

    The package gets a new run of the same name where training resumes, also where it goes back to a checkpoint after
    a loss spike: in these packages a step cannot be replaced.
    """

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        self.settings = {"project": project, "name": name, "config": config}
        self.run: Any = None
        self.background = Background(self._release)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        self.background.do(lambda: self._log(event, step, values))

    def close(self) -> None:
        self.background.do(self._finish)
        self.background.finish()

    def _log(self, event: str, step: int, values: dict[str, Any]) -> None:
        if event in ("start", "resume"):
            self._finish()
            self.run = self._begin()
        elif event == "sample":
            self.run.log({"sample": self._page(values["text"])}, step=step)
        elif shown := numbers(event, values):
            self.run.log(shown, step=step)

    def _finish(self) -> None:
        if self.run is not None:
            self.run.finish()

    def _begin(self) -> Any:
        raise NotImplementedError

    def _page(self, text: str) -> Any:
        raise NotImplementedError

    def _release(self) -> None:
        """Undo whatever keeps the process from ending."""


class WandbTracker(ServiceTracker):
    """Sends a run to Weights & Biases."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        if wandb.setup().settings.mode == "online":
            wandb.login(verify=False)  # may ask at the terminal, which the background must not
        super().__init__(project, name, config)

    def _begin(self) -> Any:
        # It would send what is printed, and printing would wait for it.
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
        if event in ("start", "resume"):
            self.close()
            self.writer = self.open(purge_step=step + 1 if event == "resume" else None)
        elif event == "sample":
            self.writer.add_text("sample", indented(values["text"]), step)
        for name, value in numbers(event, values).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def numbers(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Return the values in a record that become curves."""
    return {name: values[name] for name in values if name in NUMBERS} if event in ("train", "eval") else {}


def indented(text: str) -> str:
    """Return text that Markdown shows unchanged."""
    return "".join(f"    {line}\n" for line in text.splitlines())
