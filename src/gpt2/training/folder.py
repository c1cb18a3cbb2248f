"""The folder of a run made ready, and the run's alone."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import locked, write_text
from gpt2.runlog.peer_logs import BUILD_NANOGPT, LLMC, PeerLogWriter
from gpt2.runlog.trackers import TensorBoardTracker, Trackers, TrackioTracker, WandbTracker
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml
from gpt2.training.setup import Run

# What a run writes into its folder, and so all that starting anew removes.
RUN_FILES = (
    "config.toml",
    "log.jsonl",
    "checkpoints/*step_*",
    "checkpoints/best.json",
    "llmc/gpt2_*.bin",
    "llmc/main.log",
    "build-nanogpt/log.txt",
    "samples/step_*.txt",
    "tensorboard/events.*",
)


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
        trackers.open("llmc_log", lambda: PeerLogWriter(out_dir / "llmc", LLMC))
    if config.build_nanogpt_log:
        trackers.open("build_nanogpt_log", lambda: PeerLogWriter(out_dir / "build-nanogpt", BUILD_NANOGPT))


@contextmanager
def claimed(run: Run, note: Callable[[str], None]) -> Iterator[Trackers]:
    """The run folder made ready, and this run's alone; yields the trackers, open, in the main process.

    A fresh run first removes what an old one left. `note` is told of trackers that fail. Raises UserError where the
    folder cannot be written or another process trains in it.
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
    old = [p for name in RUN_FILES for p in out_dir.glob(name)] if run.saved_step is None else []
    for path in {*old, *(out_dir / "checkpoints").glob(".*.tmp")}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    # As a recipe it must not delete the run it describes.
    settings = {name: value for name, value in config.as_dict().items() if name != "overwrite"}
    write_text(out_dir / "config.toml", dump_toml(settings))
    _open_trackers(config, out_dir, trackers)
