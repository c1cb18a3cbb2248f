"""A training session: the run folder, made ready and locked, with log, console, saver and signals of a process."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.errors import Log, UserError
from gpt2.files import locked, remove, write_text
from gpt2.reporting.trainer import LOCK
from gpt2.runlog.console import RunConsole
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC, OtherLogWriter
from gpt2.runlog.records import Listener, LogWriter
from gpt2.runlog.trackers import TensorBoardTracker, Tracker, Trackers, TrackioTracker, WandbTracker, require
from gpt2.training.config import TrainConfig
from gpt2.training.ownership import CONFIG, files_of_run, leftovers
from gpt2.training.recipes import dump_toml
from gpt2.training.run import Run
from gpt2.training.saver import Saver
from gpt2.training.signals import Stop, stop_on_signals

TRACKERS: dict[str, Callable[[TrainConfig, Path], Tracker]] = {
    "wandb_log": lambda config, out_dir: WandbTracker(*_named(config, out_dir)),
    "trackio_log": lambda config, out_dir: TrackioTracker(*_named(config, out_dir)),
    "tensorboard_log": lambda config, out_dir: TensorBoardTracker(out_dir / "tensorboard"),
    "llmc_log": lambda config, out_dir: OtherLogWriter(out_dir / "llmc", LLMC),
    "build_nanogpt_log": lambda config, out_dir: OtherLogWriter(out_dir / "build-nanogpt", BUILD_NANOGPT),
}
"""What makes the tracker of a run, by the setting that switches it on."""
TRACKER_MODULES = {"wandb_log": "wandb", "trackio_log": "trackio", "tensorboard_log": "torch.utils.tensorboard"}
"""The modules that trackers need, by setting."""
RESERVED_DESCRIPTORS = 16
"""Number of file descriptors that are reserved for a last checkpoint, in case the process runs out of them."""


@dataclass(frozen=True)
class Session:
    """A session is one process's training of a run, from a start or resume to its end."""

    run: Run
    console: RunConsole
    log: LogWriter
    saver: Saver
    stop: Stop
    reserve: list[int]
    """File descriptors that are closed to make room for a last checkpoint."""

    def take_checkpoint(self) -> checkpoint.Checkpoint:
        """Return the checkpoint of the run's current step, which shares the memory of the run."""
        run = self.run
        state = replace(run.state, scaler=run.scaler.state_dict())
        about = {"train": run.config.as_dict(), "dataset": run.data_fingerprint, "machine": run.machine}
        about |= {"own_layers": True} if run.own_layers else {}
        return checkpoint.take(run.out_dir, state, run.model, run.optimizers, run.tokenizer, about)

    def restore_folder(self) -> None:
        """Write the log and settings of a run again whose folder was deleted or moved away. Raises OSError."""
        self.log.restore()
        write_config(self.run.out_dir, self.run.config)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """Return a function that shows how far some work is, and raises Stopped where a signal interrupts it."""

        def show(done: int, total: int) -> None:
            self.stop.check_all_processes()
            self.console.working(what, done, total)

        return show


@contextmanager
def open_session(run: Run, console: RunConsole, callback: Listener | None = None) -> Iterator[Session]:
    """Make the run folder ready and lock it for this run, open its log and trackers, and listen to signals.

    callback: receives every record, in every process. With `overwrite` a fresh run first deletes what an earlier one
    wrote there. Raises UserError where the folder cannot be written or another process trains in it.
    """
    with (
        claimed_folder(run, console.note) as trackers,
        LogWriter(run.out_dir, run.world.is_main, trackers, listener=callback, note=console.note) as log,
        Saver(run.world, run.config.async_checkpoint) as saver,
        reserved_descriptors() as reserve,
    ):
        stop = Stop(run.world, lambda: saver.failed or log.lost)
        with stop_on_signals(stop, console.note):
            yield Session(run, console, log, saver, stop, reserve)


@contextmanager
def claimed_folder(run: Run, log: Log) -> Iterator[Trackers | None]:
    """Make the run folder ready and lock it; yield the trackers that are switched on, open, in the main process.

    log: receives a line for a tracker that fails.
    """
    with ExitStack() as stack:
        yield run.world.main_only(lambda: _claim(run, stack, log))


def _claim(run: Run, stack: ExitStack, log: Log) -> Trackers | None:
    config, out_dir = run.config, run.out_dir
    is_new = not out_dir.exists()
    try:
        (out_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to out_dir={out_dir} ({error.strerror}); choose another --out_dir") from None
    stack.enter_context(claimed(out_dir))
    if not is_new:
        starts_over = config.overwrite and run.saved_step is None
        for path in list(files_of_run(out_dir) if starts_over else leftovers(out_dir)):
            remove(path)
    write_config(out_dir, config)
    switched_on = {setting: make for setting, make in TRACKERS.items() if getattr(config, setting)}
    if not switched_on:
        return None
    trackers = Trackers(log)
    stack.callback(trackers.close)
    for setting, make in switched_on.items():
        trackers.open(setting, partial(make, config, out_dir))
    return trackers


@contextmanager
def trainer_lock(out_dir: Path) -> Iterator[bool]:
    """Hold the lock of a run that trains, and yield True; yield False if another process holds it.

    Raises UserError if the folder cannot be written to.
    """
    with ExitStack() as stack:
        try:
            is_free = stack.enter_context(locked(out_dir / LOCK))
        except OSError as error:
            raise UserError(
                f"cannot write to {out_dir} ({error.strerror}); make that folder writable, or name a copy of it"
            ) from None
        yield is_free


@contextmanager
def claimed(out_dir: Path) -> Iterator[None]:
    """Keep other processes from training in `out_dir` meanwhile. Raises UserError if one is training there."""
    with trainer_lock(out_dir) as is_free:
        if not is_free:
            raise UserError(f"another process is training in {out_dir}; choose another --out_dir, or stop that one")
        yield


def require_idle(out_dir: Path) -> None:
    """Raise UserError if another process is training in `out_dir`."""
    if (out_dir / LOCK).exists():
        with claimed(out_dir):
            pass


def write_config(out_dir: Path, config: TrainConfig) -> None:
    """Write the `config.toml` of a run, without `overwrite`: as a recipe it must not delete its own run."""
    settings = {name: value for name, value in config.as_dict().items() if name != "overwrite"}
    write_text(out_dir / CONFIG, dump_toml(settings))


@contextmanager
def reserved_descriptors() -> Iterator[list[int]]:
    """Open some file descriptors and return them in a list, which `release` closes when they are needed."""
    reserve = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVED_DESCRIPTORS)]
    try:
        yield reserve
    finally:
        release(reserve)


def release(reserve: list[int]) -> None:
    """Close all file descriptors of a list, and empty it."""
    while reserve:
        os.close(reserve.pop())


def _named(config: TrainConfig, out_dir: Path) -> tuple[str, str, dict[str, Any]]:
    """Return the project, the name and the settings of a run, as online trackers take them."""
    return config.wandb_project, config.wandb_run_name or str(out_dir), config.as_dict()


def require_trackers(config: TrainConfig) -> None:
    """Raise UserError where a tracker's package is missing."""
    for setting, module in TRACKER_MODULES.items():
        if getattr(config, setting):
            require(module, setting)
