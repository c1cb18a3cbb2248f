"""Finds what a name stands for (a recipe, a run or a dataset), and describes it with what to do next."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data.dataset import is_dataset
from gpt2.data.listing import DatasetEntry
from gpt2.data.listing import describe as describe_dataset
from gpt2.errors import UserError
from gpt2.formats.open import is_model
from gpt2.formats.run_folder import saved_steps, snapshot_steps
from gpt2.reporting.figures import RunReport, report_on
from gpt2.reporting.listing import is_run, newest_records, state_of
from gpt2.runlog.console import duration
from gpt2.runlog.records import FILE
from gpt2.spelling import did_you_mean
from gpt2.training import recipes
from gpt2.training.budget import to_train_longer
from gpt2.training.config import TrainConfig
from gpt2.training.filled_in import FilledIn, filled_in

SWEEP = "sweep.json"
"""Name of the file in which a sweep keeps its settings."""


@dataclass(frozen=True)
class Shown:
    """Describes a recipe, a run or a dataset."""

    kind: str
    """The kind: `recipe`, `run` or `dataset`."""
    name: str
    lines: tuple[str, ...]
    """Sentences about it, and the commands that it can be used with."""
    settings: FilledIn | None = None
    """The settings of a recipe or a run; None for a dataset, and for a run whose settings are lost."""
    report: RunReport | None = None
    """The report on a run that has a log."""
    dataset: DatasetEntry | None = None

    def figures(self) -> dict[str, Any]:
        """Return the description as a JSON object."""
        values: dict[str, Any] = {"kind": self.kind, "name": self.name, "about": list(self.lines)}
        if self.settings is not None:
            values |= {"settings": self.settings.values, "changed": list(self.settings.changed)}
        if self.report is not None:
            values["run"] = self.report.figures()
        if self.dataset is not None:
            values["dataset"] = self.dataset.figures()
        return values


def show(name: str, data_dir: str) -> Shown:
    """Return what a name stands for. A built-in recipe comes first, then a path, then a dataset in `data_dir`.

    Raises UserError where it is none of these, or its settings cannot be read.
    """
    if name in recipes.names():
        return _recipe(name, data_dir)
    path = Path(name)
    if path.is_file():
        return _recipe(name, data_dir)
    if path.is_dir() and is_run(path):
        return _run(path)
    for folder in (path, Path(data_dir) / name):
        if folder.is_dir() and is_dataset(folder):
            return _dataset(folder)
    if (what := _known_folder(path)) is not None:
        raise UserError(f"{name} is {what}")
    known = [*recipes.names(), *(p.name for p in (Path(), Path(data_dir)) if p.is_dir() for p in p.iterdir())]
    hint = did_you_mean(name, known, "gpt2 list shows what there is")
    raise UserError(f"{name} is neither a recipe, nor the folder of a run or of a dataset; {hint}")


def _known_folder(path: Path) -> str | None:
    """Return what a folder is that is neither a run nor a dataset, and its command; None for any other path."""
    if not path.is_dir():
        return None
    folder = shlex.quote(str(path))
    if (run := next((parent for parent in path.absolute().parents if is_run(parent)), None)) is not None:
        return f"inside of the run {run}: gpt2 show {shlex.quote(str(run))}"
    if (path / SWEEP).is_file():
        return f"the folder of a sweep; gpt2 list runs {folder} lists its runs, and gpt2 show takes one of them"
    if is_model(path):
        return f"a model: gpt2 explain {folder}"
    return None


def _recipe(name: str, data_dir: str) -> Shown:
    settings = recipes.load_recipe(name)
    words = shlex.quote(name) + ("" if settings.get("dataset") else " --dataset=DATASET")
    lines = [f"train it: gpt2 train {words}", f"will it fit, and how long will it take: gpt2 plan {words}"]
    if name in recipes.names():
        lines.insert(0, recipes.entry_of(name).about)
        if (folder := Path(data_dir) / name).is_dir() and is_dataset(folder):
            lines.append(f"the dataset of this name: gpt2 show {shlex.quote(str(folder))}")
    return Shown("recipe", name, tuple(lines), filled_in(TrainConfig(**settings)))


def _run(path: Path) -> Shown:
    settings = recipes.run_settings(path) or (
        recipes.load_recipe(str(path / "config.toml")) if (path / "config.toml").is_file() else {}
    )
    filled = filled_in(TrainConfig(**settings | {"out_dir": str(path)})) if settings else None
    if not (path / FILE).is_file():
        return Shown("run", str(path), (f"there is no {FILE}", *_next_for_run(path, "broken off", settings)), filled)
    report, (newest, _) = report_on(path), newest_records(path / FILE)
    state = state_of(path, newest)
    lines = [state + (f": {newest['error']}" if isinstance(newest.get("error"), str) else "")]
    for name, value, remark in report.headline():
        if value != "–":
            lines.append(f"{name}: {value}" + (f" ({remark})" if remark else ""))
    lines += [*report.facts(), *_snapshots(path)]
    return Shown("run", str(path), (*lines, *_next_for_run(path, state, settings, report)), filled, report)


def _snapshots(path: Path) -> list[str]:
    """Return a line about the snapshots of a run, and the command that shows them, if there are any."""
    if not (steps := snapshot_steps(path)):
        return []
    command = f"gpt2 serve {shlex.quote(str(path))}"
    return [f"snapshots: {len(steps)}, of steps {steps[0]} to {steps[-1]}; see how it learned: {command}"]


def _next_for_run(path: Path, state: str, settings: dict[str, Any], report: RunReport | None = None) -> list[str]:
    """Return the commands that a run can be used with in its state."""
    run = shlex.quote(str(path))
    if state in ("running", "starting"):
        left = f", about {duration(report.remaining)} to go" if report is not None and report.remaining else ""
        return [f"it trains{left}; watch it: gpt2 report {run} --serve"]
    if not saved_steps(path):
        recipe = shlex.quote(str(path / "config.toml"))
        return [f"it has no checkpoint; start again: gpt2 train {recipe} --overwrite"] if settings else []
    resume = f"gpt2 train --init_from=resume --out_dir={run}"
    if state != "finished":
        return [f"go on with it: {resume}", f"sample from it: gpt2 sample {run}"]
    lines = [f"sample from it: gpt2 sample {run}", f"its curves: gpt2 report {run}"]
    if settings and report:
        lines.append(f"train it for longer: {resume} {_longer(settings, report)}")
    return lines


def _longer(settings: dict[str, Any], report: RunReport) -> str:
    """Return the flags with which a finished run trains for longer."""
    end = next((r for r in reversed(report.records) if r["event"] == "end"), {})
    ended_by, tokens = end.get("because", ""), report.tokens or 0
    return to_train_longer(TrainConfig(**settings), ended_by, report.train_tokens, report.step, tokens)


def _dataset(path: Path) -> Shown:
    entry, folder = describe_dataset(path, path.name), shlex.quote(str(path))
    if entry.problem:
        return Shown("dataset", str(path), (entry.problem,), dataset=entry)
    lines = [f"{name} tokens: {count:,}" for name, count in (("train", entry.train), ("val", entry.val)) if count]
    lines.append(f"tokenizer: {entry.tokenizer}, {entry.vocab_size:,} ids" if entry.vocab_size else "")
    lines += [f"what is in it: gpt2 inspect {folder}", f"train on it: gpt2 train --dataset={folder}"]
    return Shown("dataset", str(path), tuple(line for line in lines if line), dataset=entry)
