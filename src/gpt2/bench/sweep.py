"""Trains every combination of some settings, one run after the other, on a grid or by successive halving."""

import itertools
import json
import math
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, get_origin

import torch

from gpt2.bench.sweep_console import SweepConsole
from gpt2.checkpoint import TrainState
from gpt2.data.dataset import open_dataset
from gpt2.errors import Log, UserError, require
from gpt2.files import write_text
from gpt2.formats.run_folder import saved_steps
from gpt2.json_file import read_object
from gpt2.optim.schedule import STEP_BUDGETS
from gpt2.reporting.figures import report_on
from gpt2.runlog.records import FILE as LOG
from gpt2.spelling import nearest
from gpt2.training.budget import last_step, log_late_decay, log_rising_rate
from gpt2.training.config import HINTS, TrainConfig, checked
from gpt2.training.loop import TrainResult, train
from gpt2.training.recipes import BATCH_SETTINGS

RECORD = "sweep.json"
"""Name of the file that holds the settings that all runs of a sweep share."""
CONSOLE = "console.log"
"""Name of the file that gets what the runs print."""
MOST_RUNS = 10_000
"""Largest number of runs of a sweep."""
LONGEST_NAME = 200
"""Largest length of a run's name in characters; file systems allow 255 bytes."""
NOT_VARIED = {
    "seed": "give the number of seeds with --seeds",
    "out_dir": "each run has its own folder in --out",
    "init_from": "give it once, for all runs",
    "overwrite": "choose another --out to begin again",
}
"""Settings that a grid cannot contain, and what to do instead."""
SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Trainer(Protocol):
    """Trains a run, as `gpt2.training.loop.train` does."""

    def __call__(self, config: TrainConfig, *, callback: Any) -> TrainResult: ...


@dataclass(frozen=True)
class Sweep:
    """A sweep says which runs to train."""

    config: TrainConfig
    """The settings that all runs share."""
    grid: dict[str, list[Any]]
    """The values to try of each varied setting."""
    seeds: list[int]
    out: Path
    """Folder of the run folders."""
    halving: int = 0
    """Of each rung of successive halving, the best one in `halving` goes on. 0 trains all runs to their end."""


@dataclass
class Combination:
    """A combination is one value for each varied setting, which is trained with every seed."""

    values: dict[str, Any]
    config: TrainConfig
    """The settings of its runs except for seed and folder."""
    steps: int
    """Number of optimizer steps of a complete run."""
    losses: dict[int, float] = field(default_factory=dict)
    """Last validation loss in nats, by seed."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Wall time by seed."""
    problem: str = ""
    """Why a run failed; empty where none did."""
    trained: int = 0
    """Number of optimizer steps that its runs have made."""
    rungs: list[tuple[float, float | None]] = field(default_factory=list)
    """Mean and spread of the losses at the end of each rung that it finished."""

    @property
    def reason(self) -> str:
        """The first clause of the problem, without what the user of a single run could do."""
        return self.problem.split(";")[0]

    @property
    def mean(self) -> float:
        """Mean validation loss over the seeds; infinite where a run failed."""
        return math.inf if self.problem or not self.losses else sum(self.losses.values()) / len(self.losses)

    @property
    def spread(self) -> float | None:
        """Largest minus smallest loss of the seeds; None with fewer than two of them."""
        return max(self.losses.values()) - min(self.losses.values()) if len(self.losses) > 1 else None


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values to try by setting, from texts such as `learning_rate=1e-3,3e-3`. Raises UserError."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        require(bool(equals and values), f"grid is {text[:80]!r}; write it as learning_rate=1e-3,3e-3")
        if name not in HINTS:
            close = nearest(name, HINTS)
            hint = f"did you mean {close}?" if close else "gpt2 train --help lists them"
            raise UserError(f"grid: no setting {name[:80]!r}; {hint}")
        require(name not in NOT_VARIED, f"grid cannot contain {name}; {NOT_VARIED.get(name)}")
        require(name not in grid, f"grid contains {name} twice; give all of its values once, with commas")
        grid[name] = list(dict.fromkeys(value_of(name, value) for value in values.split(",")))
    require(bool(grid), "there is nothing to vary; give --grid, such as --grid learning_rate=1e-3,3e-3")
    return grid


def value_of(name: str, text: str) -> Any:
    """Return a text as a value of the setting `name`. Raises UserError."""
    hint = HINTS[name]
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is Literal:
        return checked(name, {str(kind): kind for kind in kinds}.get(text, text))
    if bool in kinds:
        require(text.lower() in SWITCHES, f"{name} is {text[:80]!r}; it must be true or false")
        return SWITCHES[text.lower()]
    for kind in (int, float):
        if kind in kinds:
            try:
                return checked(name, kind(text))
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise UserError(f"{name} is {text[:80]!r}; it must be {what}") from None
    return checked(name, text)


def combinations(sweep: Sweep, log: Log) -> list[Combination]:
    """Return all combinations of a grid. Their datasets are prepared if they must be. Raises UserError.

    log: receives lines about the preparation, and about learning rates that rise or do not decay to their end.
    """
    count = math.prod(map(len, sweep.grid.values())) * len(sweep.seeds)
    require(count <= MOST_RUNS, f"these are {count:,} runs, and a sweep has at most {MOST_RUNS:,}; try fewer values")
    require(
        sweep.config.init_from not in ("resume", "auto"),
        f"init_from={sweep.config.init_from} continues one run; a sweep resumes its own runs when it is repeated",
    )
    require(not sweep.config.eval_only, "eval_only trains nothing, so there is nothing to compare; leave it off")
    found, lines = [], list[str]()
    for chosen in itertools.product(*sweep.grid.values()):
        values: dict[str, Any] = dict(zip(sweep.grid, chosen, strict=True))
        others = BATCH_SETTINGS if any(name in values for name in BATCH_SETTINGS) else ()
        changes: dict[str, Any] = {**dict.fromkeys(others), **values}
        config = replace(sweep.config, overwrite=False, **changes)
        tokens = open_dataset(config.dataset, config.data_dir, log).split("train", config.block_size)
        steps = last_step(config, len(tokens), TrainState(), _silent)
        found.append(Combination(values, config, steps))
        log_late_decay(config.resolved(steps), steps, lines.append)
        log_rising_rate(config.resolved(steps), lines.append)
    for line in dict.fromkeys(lines):
        log(line)
    return found


def rungs(count: int, factor: int) -> list[int]:
    """Return how many of `count` combinations train in each rung: the best one in `factor` of a rung goes on.

    This is successive halving (Jamieson & Talwalkar 2016), and one rung for a factor of 0.
    """
    sizes = [count]
    while factor and sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // factor))
    return sizes


def end_of(combination: Combination, rung: int, n_rungs: int, factor: int) -> int:
    """Return the optimizer step at which a rung ends, counted from 0: a `factor` of that of the next rung."""
    return max(min(1, combination.steps), combination.steps // max(1, factor) ** (n_rungs - 1 - rung))


def run_name(values: dict[str, Any], seed: int) -> str:
    """Return the name of a run's folder, such as `learning_rate=0.001,optimizer=muon,seed=1337`."""
    settings = ",".join(f"{name}={shown(value)}" for name, value in values.items())
    return re.sub(r"[^\w.,=+-]", "_", settings)[:LONGEST_NAME] + f",seed={seed}"


def shown(value: Any) -> str:
    """Return the value of a setting as a user writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def run_sweep(sweep: Sweep, console: SweepConsole, trainer: Trainer = train) -> list[Combination] | None:
    """Train the runs of a sweep; return all combinations, or None where a signal stopped a run, which is saved then.

    Runs that an earlier call finished are not trained again, and one that it did not finish is resumed. A run that
    fails ends its combination, not the sweep. Raises UserError for a folder with a sweep of other settings.
    """
    found = combinations(sweep, console.note)
    names = [run_name(c.values, 0) for c in found]
    require(len(set(names)) == len(names), "two combinations would share a folder; use shorter or plainer values")
    claim(sweep)
    sizes = rungs(len(found), sweep.halving)
    console.begin(sum(sizes) * len(sweep.seeds), expected_tokens(sweep, found, sizes))
    going = found
    for rung, size in enumerate(sizes):
        going = sorted(going, key=lambda c: c.mean)[:size]
        for combination in going:
            end = end_of(combination, rung, len(sizes), sweep.halving)
            if not train_combination(sweep, combination, end, console, trainer):
                return None
    return found


def expected_tokens(sweep: Sweep, found: Sequence[Combination], sizes: Sequence[int]) -> float:
    """Return the number of tokens that all runs will train on, if those that go on are like the others."""
    total, before = 0.0, 0.0
    for rung, size in enumerate(sizes):
        ends = (end_of(c, rung, len(sizes), sweep.halving) * c.config.tokens_per_step for c in found)
        mean = sum(ends) / len(found)
        total += size * len(sweep.seeds) * (mean - before)
        before = mean
    return total


def claim(sweep: Sweep) -> None:
    """Make the folder of a sweep, or check that the one in it has the same settings. Raises UserError."""
    path, settings = sweep.out / RECORD, sweep.config.as_dict()
    settings = {name: value for name, value in settings.items() if name not in ("out_dir", "overwrite")}
    if not path.exists():
        if sweep.out.is_dir() and any(sweep.out.iterdir()):
            raise UserError(f"{sweep.out} is not empty, and holds no sweep; choose another --out")
        write_text(path, json.dumps({"settings": settings, "halving": sweep.halving}, indent=1) + "\n")
        return
    record = read_object(path, "choose another --out")
    before = record.section("settings") if record.has("settings") else None
    earlier = {**(before.values if before else {}), "halving": record.values.get("halving")}
    for name, value in {**settings, "halving": sweep.halving}.items():
        if earlier.get(name) != value:
            raise UserError(
                f"{sweep.out} holds a sweep with {name}={earlier.get(name)}, not {value}; choose another --out, or "
                f"give --{name}={earlier.get(name)} to continue it"
            )


def train_combination(
    sweep: Sweep, combination: Combination, end: int, console: SweepConsole, trainer: Trainer
) -> bool:
    """Train the runs of a combination up to the step `end`; return False where a signal stopped one."""
    tokens = combination.config.tokens_per_step * max(0, end - combination.trained)
    for seed in sweep.seeds:
        folder = sweep.out / run_name(combination.values, seed)
        if combination.problem:
            console.skip(folder.name, tokens, "skipped, because a run of this combination failed")
            continue
        known = finished(folder, end)
        if known is not None:
            console.skip(folder.name, tokens, f"val loss {known[0]:.4f}, trained before")
        else:
            console.start(folder.name, combination.trained, end, combination.config.tokens_per_step)
            config = config_of_run(combination, seed, folder, end)
            try:
                with (sweep.out / CONSOLE).open("a", encoding="utf-8") as file, redirect_stderr(file):
                    result = trainer(config, callback=console.record)
                if result.stopped:
                    return False
                known = finished(folder, end)
                require(known is not None and math.isfinite(known[0]), "the validation loss is not finite")
                outcome = f"val loss {known[0]:.4f}" if known else ""
            except UserError as error:
                combination.problem = str(error)
                combination.trained = report_on(folder).step if (folder / LOG).exists() else 0
                outcome = f"failed: {combination.reason}"
            if config.compile:
                torch._dynamo.reset()  # it would compile no more than 8 models
            console.end(outcome)
        if known is not None:
            combination.losses[seed], combination.seconds[seed] = known
    if not combination.problem:
        combination.trained = end
    combination.rungs.append((combination.mean, combination.spread))
    return True


def config_of_run(combination: Combination, seed: int, folder: Path, end: int) -> TrainConfig:
    """Return the settings of a run. One that ends before its last step follows the schedule of the complete run."""
    config = replace(combination.config, seed=seed, out_dir=str(folder))
    config = replace(config, init_from="resume") if saved_steps(folder) else replace(config, overwrite=True)
    if end == combination.steps:
        return config
    decay = combination.steps if config.lr_decay_iters is None else config.lr_decay_iters
    return replace(config, max_iters=end, lr_decay_iters=decay)


def finished(folder: Path, end: int) -> tuple[float, float] | None:
    """Return the validation loss at the step `end`, or at an earlier end of the run, and the seconds of a run.

    None stands for a run that has to train on.
    """
    if not (folder / LOG).exists():
        return None
    report = report_on(folder, is_training=False)
    because = next((r.get("because") for r in reversed(report.records) if r["event"] == "end"), None)
    if report.state != "finished" or (because in STEP_BUDGETS and report.step < end):
        return None
    losses = [e["val_loss"] for e in report.evaluations if e["step"] <= end and e.get("val_loss") is not None]
    return losses[-1] if losses else math.nan, report.seconds


def _silent(line: str) -> None:
    """Log nothing."""
