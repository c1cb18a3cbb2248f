"""Weights & Biases, trackio and TensorBoard, behind a switch each: told what is recorded, and never in the way.

A tracker that fails costs one line and is left out from then on. The run does not depend on any of them.
"""

import html
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gpt2.errors import UserError, first_line

NUMBERS = {
    "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory",
    "train_loss", "val_loss", "acc", "acc_norm",
}  # fmt: skip
"""What of the `train` and `eval` records becomes a curve."""


TENSORBOARD_SUFFIX = ".gpt2"
"""End of the name of TensorBoard's files, by which a run recognises those of an earlier one."""


class Tracker(Protocol):
    """Something that is told every record of a run, as `LogWriter.write` gets it."""

    def log(self, event: str, step: int, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Trackers:
    """The trackers of a run by the switch that turned them on. `note` receives a line about one that fails."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.running: dict[str, Tracker] = {}

    def open(self, switch: str, make: Callable[[], Tracker]) -> None:
        """Have what `make` gives told everything from here on."""

        def work() -> None:
            self.running[switch] = make()

        self._attempt(switch, work)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Tell all of a record."""
        for switch, tracker in list(self.running.items()):
            self._attempt(switch, lambda tracker=tracker: tracker.log(event, step, values))

    def close(self) -> None:
        """Let all finish."""
        for switch, tracker in list(self.running.items()):
            self._attempt(switch, tracker.close)

    def _attempt(self, switch: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a network, a full disk, somebody else's mistake: nothing a run should end for
            self.running.pop(switch, None)
            self.note(f"{switch} failed ({first_line(error)}); the run goes on without it")


def require(module: str, switch: str) -> None:
    """Raise UserError unless the package behind `switch` can be imported."""
    package = module.rsplit(".", 1)[-1]
    try:
        importlib.import_module(module)
    except ImportError:
        raise UserError(f"{switch} needs the {package} package; pip install {package}, or leave it off") from None
    except Exception as error:
        raise UserError(
            f"{switch}: the {package} package is broken ({first_line(error)}); install it anew, or leave it off"
        ) from None


class WandbTracker:
    """A run of Weights & Biases."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import wandb

        self.run = wandb.init(project=project, name=name, config=config)
        self.page = wandb.Html

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        if event == "sample":
            self.run.log({"sample": self.page(f"<pre>{html.escape(values['text'])}</pre>")}, step=step)
        elif shown := numbers(event, values):
            self.run.log(shown, step=step)

    def close(self) -> None:
        self.run.finish()


class TrackioTracker:
    """A run of trackio, which keeps it on this machine."""

    def __init__(self, project: str, name: str, config: dict[str, Any]) -> None:
        import trackio

        self.run = trackio.init(project=project, name=name, config=config)
        self.page = trackio.Markdown

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        if event == "sample":
            self.run.log({"sample": self.page(indented(values["text"]))}, step=step)
        elif shown := numbers(event, values):
            self.run.log(shown, step=step)

    def close(self) -> None:
        self.run.finish()


class TensorBoardTracker:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), filename_suffix=TENSORBOARD_SUFFIX)

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        if event == "sample":
            self.writer.add_text("sample", indented(values["text"]), step)
        for name, value in numbers(event, values).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def numbers(event: str, values: dict[str, Any]) -> dict[str, float]:
    """The curves' values in a record."""
    return {name: values[name] for name in values if name in NUMBERS} if event in ("train", "eval") else {}


def indented(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
