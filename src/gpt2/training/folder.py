"""The folder of a run made ready, and the run's alone."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import locked, write_text
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC, OtherLogWriter
from gpt2.runlog.trackers import TensorBoardTracker, Trackers, TrackioTracker, WandbTracker
from gpt2.training.config import TrainConfig
from gpt2.training.ownership import CONFIG, files_of_run, leftovers
from gpt2.training.recipes import dump_toml
from gpt2.training.setup import Run


def _open_trackers(config: TrainConfig, out_dir: Path, trackers: Trackers) -> None:
    """Open those that are switched on."""
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
def claimed(run: Run, note: Callable[[str], None]) -> Iterator[Trackers]:
    """The run folder made ready, and this run's alone; yields the trackers, open, in the main process.

    With `overwrite` a fresh run first deletes what an earlier one wrote there. `note` receives a line for a tracker
    that fails. Raises UserError where the folder cannot be written or another process trains in it.
    """
    with ExitStack() as stack:
        trackers = Trackers(note)
        stack.callback(trackers.close)
        run.world.main_only(lambda: _claim(run, stack, trackers))
        yield trackers


def _claim(run: Run, stack: ExitStack, trackers: Trackers) -> None:
    config, out_dir = run.config, run.out_dir
    try:
        (out_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to out_dir={out_dir} ({error.strerror}); choose another --out_dir") from None
    if not stack.enter_context(locked(out_dir / ".lock")):
        raise UserError(f"another process is training in {out_dir}; choose another --out_dir, or stop that one")
    starts_over = config.overwrite and run.saved_step is None
    for path in list(files_of_run(out_dir) if starts_over else leftovers(out_dir)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_config(run)
    _open_trackers(config, out_dir, trackers)


def write_config(run: Run) -> None:
    """Write the run's settings to `config.toml`, without `overwrite`: as a recipe it must not delete its own run."""
    settings = {name: value for name, value in run.config.as_dict().items() if name != "overwrite"}
    write_text(run.out_dir / CONFIG, dump_toml(settings))
