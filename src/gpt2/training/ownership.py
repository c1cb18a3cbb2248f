"""Finds the files in a run folder that a run of this program wrote. Only those may be replaced or deleted.

Files are recognised by their content, because another program may keep a `log.jsonl` or `checkpoints/` there.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.run_folder import best_file, read_snapshot, snapshot_file, snapshot_steps
from gpt2.json_file import read_object
from gpt2.runlog.checks import parse
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC
from gpt2.runlog.records import FILE as LOG
from gpt2.runlog.records import TRAIN_LINE, finished_lines
from gpt2.runlog.trackers import TENSORBOARD_SUFFIX
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import parse_toml

CONFIG = "config.toml"
"""Name of the file with the settings of a run."""
SETTINGS_OF_EVERY_RUN = {"out_dir", "init_from", "max_iters", "dataset", "learning_rate", "eval_interval"}
"""Settings by which the `config.toml` of a run is recognised."""


def files_of_run(out_dir: Path) -> Iterator[Path]:
    """Yield the files and folders in `out_dir` that an earlier run wrote, which `--overwrite` deletes."""
    settings = settings_in(out_dir / CONFIG)
    if settings is not None:
        yield out_dir / CONFIG
        yield from _files_for_other_programs(out_dir, settings)
    if _is_log(out_dir / LOG):
        yield from _samples(out_dir)
        yield out_dir / LOG
    if _is_best_file(best_file(out_dir)):
        yield best_file(out_dir)
    yield from checkpoints_of_run(out_dir)
    yield from (path for path in _snapshots(out_dir) if not path.is_symlink() and read_snapshot(path) is not None)
    yield from leftovers(out_dir)


def checkpoints_of_run(out_dir: Path) -> Iterator[Path]:
    """Yield the checkpoints in `out_dir` that a run wrote, also damaged ones and those that were set aside."""
    for folder in (out_dir / "checkpoints").glob("*step_*"):
        if re.fullmatch(r"(damaged_)?step_\d{7,}(_\d+)?", folder.name) and checkpoint.is_checkpoint_of_this_program(
            folder
        ):
            yield folder


def leftovers(out_dir: Path) -> Iterator[Path]:
    """Yield the temporary checkpoints and snapshots that a killed run did not finish writing or removing."""
    for path in (out_dir / "checkpoints").glob(".step_*.tmp"):
        if re.fullmatch(r"\.step_\d{7,}\.tmp", path.name) and (
            path.is_symlink() or {file.name for file in path.iterdir()} <= checkpoint.FILES
        ):
            yield path
    for path in (out_dir / "snapshots").glob(".step_*.safetensors.tmp"):
        if re.fullmatch(r"\.step_\d{7,}\.safetensors\.tmp", path.name):
            yield path


def require_own_files(out_dir: Path, config: TrainConfig, *, keep_history: bool) -> None:
    """Raise UserError if a new run would replace or extend files that no run of this program wrote.

    With `keep_history`, it is also an error if there is the log of an earlier run without checkpoints.
    Otherwise that log stays, and the new run's records are added to it.
    """
    written = set(files_of_run(out_dir))
    foreign = [path for path in _targets(out_dir, config) if path.exists() and path not in written]
    if foreign:
        raise UserError(
            f"{foreign[0]} was not written by a run of this program, and this run would change it; move it away, or "
            "choose another --out_dir"
        )
    if keep_history and _has_steps(out_dir / LOG):
        raise UserError(
            f"{out_dir} holds the log of a run without checkpoints; start a new one with --init_from=auto, choose "
            "another --out_dir, or delete it with --overwrite"
        )


def settings_in(config_file: Path) -> dict[str, Any] | None:
    """Return the settings in a `config.toml` that a run wrote, which has every setting; None for any other file."""
    try:
        settings = parse_toml(config_file.read_text(encoding="utf-8"), str(config_file))
    except (OSError, ValueError, RecursionError, UserError):
        return None
    return settings if settings.keys() >= SETTINGS_OF_EVERY_RUN else None


def _targets(out_dir: Path, config: TrainConfig) -> Iterator[Path]:
    """Yield the files that a run with this configuration replaces or extends if they exist."""
    yield from (out_dir / CONFIG, out_dir / LOG, best_file(out_dir))
    yield from (path for path in (out_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{7,}", path.name))
    if config.snapshot_interval:
        yield from _snapshots(out_dir)
    if config.sample_interval:
        yield from (path for path in (out_dir / "samples").glob("*.txt") if _step_of_sample(path) is not None)
    if config.llmc_log:
        yield out_dir / "llmc" / LLMC.file
    if config.build_nanogpt_log:
        yield out_dir / "build-nanogpt" / BUILD_NANOGPT.file
    if config.write_tensors:
        yield from (out_dir / "llmc").glob("gpt2_*.bin")


def _files_for_other_programs(out_dir: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Yield the files in other programs' formats that a run with these settings wrote."""
    candidates: list[Path] = []
    if settings.get("llmc_log"):
        candidates.append(out_dir / "llmc" / LLMC.file)
    if settings.get("build_nanogpt_log"):
        candidates.append(out_dir / "build-nanogpt" / BUILD_NANOGPT.file)
    if settings.get("write_tensors"):
        candidates += (out_dir / "llmc").glob("gpt2_*.bin")
    if settings.get("tensorboard_log"):
        candidates += (out_dir / "tensorboard").glob(f"events.out.tfevents.*{TENSORBOARD_SUFFIX}")
    yield from (path for path in candidates if path.is_file())


def _is_log(path: Path) -> bool:
    """Return whether a file is the log of a run: it is empty, or its first line is a record of a run."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(1 << 20)
        return not first or {"event", "step", "time"} <= json.loads(first).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _has_steps(log: Path) -> bool:
    """Return whether a log has the record of an optimizer step."""
    with suppress(OSError), log.open("rb") as file:
        return any(line.startswith(TRAIN_LINE) for _, line in finished_lines(file))
    return False


def _is_best_file(path: Path) -> bool:
    """Return whether a file names the best checkpoint of a run."""
    try:
        return read_object(path, "delete it").values.keys() == {"step", "val_loss"}
    except (OSError, UserError):
        return False


def _snapshots(out_dir: Path) -> Iterator[Path]:
    """Yield the files with the names of snapshots."""
    yield from (snapshot_file(out_dir, step) for step in snapshot_steps(out_dir))


def _step_of_sample(path: Path) -> int | None:
    """Return the step in the name of a sample's file; None for any other name."""
    match = re.fullmatch(r"step_(\d{7,})\.txt", path.name)
    return int(match[1]) if match else None


def _samples(out_dir: Path) -> Iterator[Path]:
    """Yield the files in `samples/` whose text is in the log too."""
    files = {
        step: path for path in (out_dir / "samples").glob("*.txt") if (step := _step_of_sample(path)) is not None
    }
    if not files:
        return
    with (out_dir / LOG).open("rb") as log:
        for _, line in finished_lines(log):
            if not line.startswith(b'{"event": "sample"') or (record := parse(line)) is None:
                continue
            with suppress(OSError, ValueError, KeyError):
                path = files.get(record["step"])
                if path is not None and path.read_text(encoding="utf-8") == record["text"] + "\n":
                    yield path
                    del files[record["step"]]
