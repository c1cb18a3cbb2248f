"""Lists runs without reading their logs completely: where each one stands."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.files import folders_below, manifest_problem, total_bytes
from gpt2.formats.run_folder import CONTENT, best_file, folder_of, saved_steps
from gpt2.json_file import read_object
from gpt2.optim.schedule import steps_of_budgets
from gpt2.reporting import trainer
from gpt2.reporting.verdict import facts_of
from gpt2.runlog.checks import parse
from gpt2.runlog.curves import printable, settings_of
from gpt2.runlog.records import FILE, finished_lines

DEPTH = 3
"""Number of levels below a folder at which runs are looked for."""
TAIL = 1 << 16
"""Bytes at the end of a log in which its newest records are looked for first."""
LONGEST_FIRST_LINE = 1 << 16
EVALUATION = b'{"event": "eval"'
"""The beginning of a line that can hold the lowest validation loss."""


@dataclass(frozen=True)
class RunEntry:
    """Describes a run in a list."""

    path: Path
    state: str
    """The state as far as log and lock show it: `starting`, `running`, `finished`, `stopped`, `failed`, `broken off`
    or `no record yet`."""
    step: int | None = None
    """Number of optimizer steps made."""
    last_step: int | None = None
    """Optimizer step at which max_iters, max_tokens or max_epochs ends the run."""
    max_iters: int | None = None
    train_loss: float | None = None
    """Loss of the newest step."""
    best_val_loss: float | None = None
    best_step: int | None = None
    bytes: int = 0
    """Size of the folder on the disk."""
    newest: float | None = None
    """Time of the last record, in Unix seconds."""
    problem: str | None = None
    """What is wrong with the run; None where nothing was noticed."""

    def figures(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return asdict(self) | {"path": str(self.path)}


def runs_in(folders: Iterable[Path]) -> list[RunEntry]:
    """Return the runs among the folders and below them, in the order of their paths. A damaged one is listed."""
    found: dict[str, RunEntry] = {}
    for folder in folders:
        for path in folders_below(folder, DEPTH, is_run):
            if (real := os.path.realpath(path)) not in found:
                found[real] = describe(path)
    return sorted(found.values(), key=lambda entry: str(entry.path))


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run: checkpoints with their settings, or the log of a run."""
    if (folder / "checkpoints").is_dir() and ((folder / "config.toml").is_file() or saved_steps(folder)):
        return True
    return _first_record(folder / FILE).keys() >= {"event", "step", "time"}


def describe(path: Path) -> RunEntry:
    """Return the entry of the run in a folder, from the end of its log and the list of its checkpoints."""
    settings, newest, train = settings_of(path), {}, {}
    problems = []
    if not settings:
        problems.append("config.toml " + ("cannot be read" if (path / "config.toml").exists() else "is missing"))
    try:
        newest, train = newest_records(path / FILE)
        if not newest and (path / FILE).stat().st_size:
            problems.append(f"{FILE} holds no record")
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        if not is_missing or not _is_untrained(path):
            problems.append(f"{FILE} is missing" if is_missing else f"{FILE}: {error.strerror}")
    best_step, best_loss = _best(path)
    problems += _checkpoint_problem(path)
    return RunEntry(
        path=path,
        state=state_of(path, newest),
        step=newest.get("step"),
        last_step=_last_step(path, settings, train),
        max_iters=settings.get("max_iters"),
        train_loss=train.get("loss"),
        best_val_loss=best_loss,
        best_step=best_step,
        bytes=total_bytes(path),
        newest=newest.get("time"),
        problem=printable("; ".join(problems)) or None,
    )


def _is_untrained(run: Path) -> bool:
    """Return whether a run was imported and never trained, so that it has no log: no data is recorded with it."""
    with suppress(OSError, UserError):
        steps = saved_steps(run)
        return (
            bool(steps)
            and not read_object(folder_of(run, steps[0]) / "state.json", "import it again").values["dataset"]
        )
    return False


def state_of(run: Path, newest: dict[str, Any]) -> str:
    """Return the state of a run whose last record is `newest`, which is empty where there is none."""
    if newest.get("event") == "end":
        if newest.get("because") == "error":
            return "failed"
        return "stopped" if newest.get("stopped") else "finished"
    is_training = trainer.is_training(run, newest.get("time"))
    if not newest:
        return "starting" if is_training else "no record yet"
    return "running" if is_training else "broken off"


def newest_records(log: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last record of a log and the last one of an optimizer step; each is empty where there is none.

    Only the end of the log is read, as far as that suffices. Raises OSError.
    """
    newest: dict[str, Any] = {}
    with log.open("rb") as file:
        end, size = os.fstat(file.fileno()).st_size, TAIL
        while True:
            file.seek(max(0, end - size))
            for line in reversed(file.read(min(size, end)).split(b"\n")[size < end : -1]):
                if (record := parse(line)) is not None:
                    newest = newest or record
                    if record["event"] == "train":
                        return newest, record
            if size >= end:
                return newest, {}
            size *= 16


def _last_step(run: Path, settings: dict[str, Any], train: dict[str, Any]) -> int | None:
    """Return the optimizer step at which a run ends, whose last step has the record `train`; None if not known."""
    per_step = facts_of([], settings).get("tokens_per_step")
    if not per_step or "max_iters" not in settings:
        return settings.get("max_iters")
    train_tokens = _first_record(run / FILE).get("train_tokens") if settings.get("max_epochs") else None
    return min(
        steps_of_budgets(settings, per_step, train_tokens, train.get("step", 0), train.get("tokens", 0)).values()
    )


def _first_record(log: Path) -> dict[str, Any]:
    """Return the first record of a log; empty where there is none."""
    with suppress(OSError), log.open("rb") as file:
        return parse(file.readline(LONGEST_FIRST_LINE)) or {}
    return {}


def _best(run: Path) -> tuple[int | None, float | None]:
    """Return step and value of the lowest validation loss: as recorded with the checkpoints, or from the log."""
    with suppress(OSError, UserError):
        best = read_object(best_file(run), "delete it")
        return best.integer("step"), best.number("val_loss")
    found: list[tuple[float, int]] = []
    with suppress(OSError), (run / FILE).open("rb") as file:
        for _, line in finished_lines(file):
            if line.startswith(EVALUATION) and (record := parse(line)) and record.get("val_loss") is not None:
                found.append((record["val_loss"], record["step"]))
    return (min(found)[1], min(found)[0]) if found else (None, None)


def _checkpoint_problem(run: Path) -> list[str]:
    """Return what is wrong with the newest checkpoint as far as the names and sizes of its files show it."""
    if not (steps := saved_steps(run)):
        return []
    folder = folder_of(run, steps[0])
    problem = manifest_problem(folder, CONTENT, hashes=False)
    return [f"checkpoint {folder.name} is damaged: {problem}"] if problem and folder.exists() else []
