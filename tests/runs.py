"""Runs as processes of their own, and what of a run must come out the same again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in `folder`, which is in the current one, can be written meanwhile; root gives up its rights."""
    paths, user = [Path(), folder, *folder.rglob("*")], os.geteuid()
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items():
            path.chmod(mode)


def curve(run: Path) -> list[tuple]:
    """All that must come out the same again: losses, norms and learning rates of every step, evaluations, samples."""
    keys = ("event", "step", "loss", "grad_norm", "lr", "tokens", "train_loss", "val_loss", "text")
    return [tuple(r.get(k) for k in keys) for r in read_log(run) if r["event"] in ("train", "eval", "sample")]


def final_weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step_{saved_steps(run)[0]:07d}" / "model.safetensors").read_bytes()


def start_process(config: TrainConfig) -> subprocess.Popen:
    """The run as a process of its own; what it says goes to a file."""
    folder = Path(config.out_dir).parent
    (folder / "recipe.toml").write_text(dump_toml(config.as_dict()))
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "gpt2", "train", str(folder / "recipe.toml"), "--init_from=auto"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=stderr,
        )


def wait_for_step(config, step: int, process: subprocess.Popen) -> None:
    """Until the log has a record of `step`."""
    log = Path(config.out_dir) / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"event": "train", "step": {step},' in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {log}")


def safe_log(run: Path) -> list[dict]:
    try:
        return read_log(run)
    except UserError:
        return []
