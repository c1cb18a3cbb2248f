"""The folder of a run made ready, and the run's alone."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import locked, write_text
from gpt2.runlog.trackers import TensorBoardTracker, Tracker, WandbTracker
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
    "samples/step_*.txt",
    "tensorboard/events.*",
)


def _open_trackers(config: TrainConfig, out_dir: Path) -> list[Tracker]:
    """The trackers that are switched on."""
    opened: list[Tracker] = []
    if config.wandb_log:
        name = config.wandb_run_name or str(out_dir)
        opened.append(WandbTracker(config.wandb_project, name, config.as_dict()))
    if config.tensorboard_log:
        opened.append(TensorBoardTracker(out_dir / "tensorboard"))
    return opened


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """The run folder made ready, and this run's alone, with the trackers open.

    A fresh run first removes what an old one left. Raises UserError where the folder cannot be written or
    another process trains in it.
    """
    with ExitStack() as stack:
        run.world.main_only(lambda: _claim(run, stack))
        yield


def _claim(run: Run, stack: ExitStack) -> None:
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
    run.trackers = _open_trackers(config, out_dir)
    for tracker in run.trackers:
        stack.callback(tracker.close)
