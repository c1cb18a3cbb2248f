"""A run that something is done to, and what it must end with."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import environment, members

from gpt2.formats.run_folder import saved_steps
from gpt2.training.config import TrainConfig

STEPS = 400
every = pytest.mark.skipif(not os.environ.get("GPT2_TEST_FAULTS"), reason="takes minutes; make test-faults does it")


def settings(dataset: Path, out: Path, **changes: object) -> TrainConfig:
    """A run of some seconds that is the same bit for bit on 1, 2 and 4 processes."""
    tiny = {"batch_size": 4, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "learning_rate": 1e-2}
    machine = {"device": "cpu", "dtype": "float32", "compile": False, "dataset": str(dataset), "out_dir": str(out)}
    length = {"max_iters": STEPS, "eval_interval": 0, "checkpoint_interval": 20}
    return TrainConfig(
        **{"gradient_accumulation_steps": 4, "deterministic": True, **length, **tiny, **machine, **changes}
    )


def flags(config: TrainConfig) -> list[str]:
    return [f"--{name}={value}" for name, value in config.as_dict().items() if value != ""]


def start(config: TrainConfig, *launcher: str) -> subprocess.Popen[str]:
    """The run in two processes of this machine, or as the launcher says; they are a family by the run's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", *(launcher or ("gpt2", "train", "--nproc=2")), *flags(config)],
        env=environment(config.out_dir),
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(out_dir: Path, process: subprocess.Popen[str]) -> None:
    """Until there is one more than now."""
    before = max(saved_steps(out_dir), default=0)
    deadline = time.monotonic() + 120
    while max(saved_steps(out_dir), default=0) == before:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(out_dir: Path) -> bytes:
    assert saved_steps(out_dir)[0] == STEPS
    return (out_dir / "checkpoints" / f"step_{STEPS:07d}" / "model.safetensors").read_bytes()


def ranks(out_dir: Path) -> dict[int, int]:
    """Ids of the processes that train, by rank."""
    return {int(e["RANK"]): process for process, e in members(out_dir).items() if "RANK" in e}
