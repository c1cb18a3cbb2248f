"""Which files in a run folder a run of this program wrote. Only those are ever replaced or deleted.

Everything is decided by content: another program may well keep a `log.jsonl` or `checkpoints/` in the same folder.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.run_folder import best_file
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC
from gpt2.runlog.records import FILE as LOG
from gpt2.runlog.trackers import TENSORBOARD_SUFFIX
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import parse_toml

CONFIG = "config.toml"
SETTINGS_OF_EVERY_RUN = {"out_dir", "init_from", "max_iters", "dataset", "learning_rate", "eval_interval"}


def files_of_run(out_dir: Path) -> Iterator[Path]:
    """The files and folders in `out_dir` that an earlier run wrote: what `--overwrite` deletes."""
    settings = settings_in(out_dir / CONFIG)
    if settings is not None:
        yield out_dir / CONFIG
        yield from _written_for_others(out_dir, settings)
    if _is_log(out_dir / LOG):
        yield from _samples(out_dir)
        yield out_dir / LOG
    if _is_best_file(best_file(out_dir)):
        yield best_file(out_dir)
    for folder in (out_dir / "checkpoints").glob("*step_*"):
        if re.fullmatch(r"(damaged_)?step_\d{7,}(_\d+)?", folder.name) and checkpoint.is_checkpoint_of_this_program(
            folder
        ):
            yield folder
    yield from leftovers(out_dir)


def leftovers(out_dir: Path) -> Iterator[Path]:
    """Temporary folders of checkpoints that a killed run did not finish, or did not finish removing."""
    for path in (out_dir / "checkpoints").glob(".step_*.tmp"):
        if re.fullmatch(r"\.step_\d{7,}\.tmp", path.name) and (
            path.is_symlink() or {file.name for file in path.iterdir()} <= checkpoint.FILES
        ):
            yield path


def require_room(out_dir: Path, config: TrainConfig, *, keep_history: bool) -> None:
    """Raise UserError where a run that begins anew would replace or continue what it did not write.

    keep_history: the log of an earlier run that has no checkpoint any more is refused too; otherwise it stays, and
    the new run's records follow in the same file.
    """
    ours = set(files_of_run(out_dir))
    in_the_way = [path for path in _will_write(out_dir, config) if path.exists() and path not in ours]
    if in_the_way:
        raise UserError(
            f"{in_the_way[0]} was not written by a run of this program, which would write to it; move it away, or "
            "choose another --out_dir"
        )
    if keep_history and _has_updates(out_dir / LOG):
        raise UserError(
            f"{out_dir} holds the log of a run whose checkpoints are gone; choose another --out_dir, or delete it "
            "with --overwrite"
        )


def settings_in(config_file: Path) -> dict[str, Any] | None:
    """The settings in a `config.toml` that a run wrote, which has every setting; None for any other file."""
    try:
        found = parse_toml(config_file.read_text(encoding="utf-8"), str(config_file))
    except (OSError, UnicodeDecodeError, UserError):
        return None
    return found if found.keys() >= SETTINGS_OF_EVERY_RUN else None


def _will_write(out_dir: Path, config: TrainConfig) -> Iterator[Path]:
    """The files that a run with this configuration replaces or appends to, where they exist."""
    yield from (out_dir / CONFIG, out_dir / LOG, best_file(out_dir))
    yield from (path for path in (out_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d{7,}", path.name))
    if config.sample_interval:
        yield from (path for path in (out_dir / "samples").glob("*.txt") if _step_of_sample(path) is not None)
    if config.llmc_log:
        yield out_dir / "llmc" / LLMC.file
    if config.build_nanogpt_log:
        yield out_dir / "build-nanogpt" / BUILD_NANOGPT.file
    if config.write_tensors:
        yield from (out_dir / "llmc").glob("gpt2_*.bin")


def _written_for_others(out_dir: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The files in other programs' formats that a run with these settings wrote."""
    found: list[Path] = []
    if settings.get("llmc_log"):
        found.append(out_dir / "llmc" / LLMC.file)
    if settings.get("build_nanogpt_log"):
        found.append(out_dir / "build-nanogpt" / BUILD_NANOGPT.file)
    if settings.get("write_tensors"):
        found += (out_dir / "llmc").glob("gpt2_*.bin")
    if settings.get("tensorboard_log"):
        found += (out_dir / "tensorboard").glob(f"events.out.tfevents.*{TENSORBOARD_SUFFIX}")
    yield from (path for path in found if path.is_file())


def _is_log(path: Path) -> bool:
    """Whether a file is the log of a run: its first line is the record that a run begins with, or it is empty."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(1 << 20)
        return not first or {"event", "step", "time"} <= json.loads(first).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _has_updates(log: Path) -> bool:
    """Whether a log has the record of an update."""
    with suppress(OSError), log.open("rb") as file:
        return any(line.startswith(b'{"event": "train"') for line in file)
    return False


def _is_best_file(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).keys() == {"step", "val_loss"}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _step_of_sample(path: Path) -> int | None:
    """The step in the name of a sample's file; None for another name."""
    found = re.fullmatch(r"step_(\d{7,})\.txt", path.name)
    return int(found[1]) if found else None


def _samples(out_dir: Path) -> Iterator[Path]:
    """The files in `samples/` that hold a text which the log has as well."""
    files = {
        step: path for path in (out_dir / "samples").glob("*.txt") if (step := _step_of_sample(path)) is not None
    }
    if not files:
        return
    with (out_dir / LOG).open("rb") as log:
        for line in log:
            if not line.startswith(b'{"event": "sample"'):
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(line)
                path = files.get(record["step"])
                if path is not None and path.read_text(encoding="utf-8") == record["text"] + "\n":
                    yield path
                    del files[record["step"]]
