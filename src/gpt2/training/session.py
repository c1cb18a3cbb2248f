"""A training session: the run folder, made ready and locked, with log, console, saver and signals of a process."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2 import checkpoint
from gpt2.errors import Log, UserError
from gpt2.files import locked, write_text
from gpt2.reporting.trainer import LOCK
from gpt2.runlog.console import RunConsole
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC, OtherLogWriter
from gpt2.runlog.records import Listener, LogWriter
from gpt2.runlog.trackers import TensorBoardTracker, Trackers, TrackioTracker, WandbTracker, require
from gpt2.training.config import TrainConfig
from gpt2.training.ownership import CONFIG, files_of_run, leftovers
from gpt2.training.recipes import dump_toml
from gpt2.training.run import Run
from gpt2.training.saver import Saver
from gpt2.training.signals import Stop, stop_on_signals

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

    def snapshot(self) -> checkpoint.Snapshot:
        """Return what a checkpoint of the run's current step holds."""
        run = self.run
        state = replace(run.state, scaler=run.scaler.state_dict())
        about = {"train": run.config.as_dict(), "dataset": run.data_fingerprint, "machine": run.machine}
        about |= {"own_layers": True} if run.own_layers else {}
        return checkpoint.snapshot(run.out_dir, state, run.model, run.optimizers, run.tokenizer, about)

    def restore_folder(self) -> None:
        """Write the log and settings of a run again whose folder was deleted or moved away. Raises OSError."""
        self.log.restore()
        write_config(self.run)

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
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    write_config(run)
    switches = ("wandb_log", "trackio_log", "tensorboard_log", "llmc_log", "build_nanogpt_log")
    if not any(getattr(config, name) for name in switches):
        return None
    trackers = Trackers(log)
    stack.callback(trackers.close)
    _open_trackers(config, out_dir, trackers)
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


def write_config(run: Run) -> None:
    """Write the settings to `config.toml`, without `overwrite`: as a recipe it must not delete its own run."""
    settings = {name: value for name, value in run.config.as_dict().items() if name != "overwrite"}
    write_text(run.out_dir / CONFIG, dump_toml(settings))


def _open_trackers(config: TrainConfig, out_dir: Path, trackers: Trackers) -> None:
    """Open the trackers that are switched on."""
    about = config.wandb_project, config.wandb_run_name or str(out_dir), config.as_dict()
    if config.wandb_log:
        trackers.open("wandb_log", lambda: WandbTracker(*about))
    if config.trackio_log:
        trackers.open("trackio_log", lambda: TrackioTracker(*about))
    if config.tensorboard_log:
        trackers.open("tensorboard_log", lambda: TensorBoardTracker(out_dir / "tensorboard"))
    if config.llmc_log:
        trackers.open("llmc_log", lambda: OtherLogWriter(out_dir / "llmc", LLMC))
    if config.build_nanogpt_log:
        trackers.open("build_nanogpt_log", lambda: OtherLogWriter(out_dir / "build-nanogpt", BUILD_NANOGPT))


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


def require_trackers(config: TrainConfig) -> None:
    """Raise UserError where a tracker's package is missing."""
    if config.wandb_log:
        require("wandb", "wandb_log")
    if config.trackio_log:
        require("trackio", "trackio_log")
    if config.tensorboard_log:
        require("torch.utils.tensorboard", "tensorboard_log")
