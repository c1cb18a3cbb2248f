"""The number of processes does not change the training. They are started by torchrun and talk through gloo."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from gpt2.formats.layout import saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig

SETTINGS = {"max_iters": 12, "eval_interval": 6, "gradient_accumulation_steps": 8, "dropout": 0.1, "eval_iters": 5}


def launch(config: TrainConfig, nproc: int, **changes: object) -> subprocess.CompletedProcess[str]:
    settings = {**config.as_dict(), **changes}
    flags = [f"--{name}={value}" for name, value in settings.items() if value != ""]
    return subprocess.run(
        [sys.executable, "-m", "gpt2", "train", f"--nproc={nproc}", *flags],
        env={k: v for k, v in os.environ.items() if k != "RANK"} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(out_dir: str) -> Path:
    [step, *_] = saved_steps(Path(out_dir))
    return Path(out_dir) / "checkpoints" / f"step_{step:07d}" / "model.safetensors"


def fingerprint(out_dir: str) -> str:
    return hashlib.sha256(weights(out_dir).read_bytes()).hexdigest()


def losses(out_dir: str) -> list[tuple]:
    return [
        (r["event"], r["step"], r.get("loss"), r.get("val_loss"), r.get("grad_norm"))
        for r in read_log(Path(out_dir))
        if r["event"] in ("train", "eval")
    ]


@pytest.fixture
def run(tiny, tmp_path: Path):
    def run(name: str, nproc: int, **changes: object) -> str:
        config = tiny(**SETTINGS, out_dir=str(tmp_path / name))
        done = launch(config, nproc, **changes)
        assert done.returncode == 0, done.stderr
        return config.out_dir

    return run


def test_deterministic_runs_are_the_same_bit_for_bit(run) -> None:
    alone, *others = (run(f"d{n}", n, deterministic=True) for n in (1, 2, 4))
    for other in others:
        assert losses(other) == losses(alone)
        assert fingerprint(other) == fingerprint(alone)


def test_plain_runs_agree_but_for_rounding(run) -> None:
    alone, *others = (run(f"p{n}", n) for n in (1, 2, 4))
    for other in others:
        for (event, step, *ours), (their_event, their_step, *theirs) in zip(
            losses(alone), losses(other), strict=True
        ):
            assert (event, step) == (their_event, their_step)
            assert [x is None or x == pytest.approx(y, rel=2e-4) for x, y in zip(ours, theirs, strict=True)].count(
                False
            ) == 0
        mine, its = load_file(weights(alone)), load_file(weights(other))
        assert all(abs(mine[name] - its[name]).max() < 1e-3 for name in mine)
    assert len({fingerprint(out) for out in (alone, *others)}) == 3  # else the test above could not fail


def test_resumed_with_other_numbers_of_processes(run) -> None:
    whole = run("whole", 1, deterministic=True)
    for begin, nproc in ((3, 1), (6, 2), (9, 4), (12, 1)):
        resumed = run(
            "resumed", nproc, deterministic=True, init_from="auto", max_iters=begin, lr_decay_iters=12, warmup_iters=0
        )
    assert fingerprint(resumed) == fingerprint(whole)
