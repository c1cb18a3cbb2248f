"""The number of processes does not change the training. They are started by torchrun and talk through gloo."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as torch_file

from gpt2.formats.run_folder import folder_of, saved_steps, snapshot_file
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

SETTINGS = {"max_iters": 12, "eval_interval": 6, "gradient_accumulation_steps": 8, "dropout": 0.1, "eval_iters": 5}


WORLDS = [int(n) for n in os.environ.get("GPT2_TEST_WORLDS", "2").split(",")]
"""Numbers of processes beside one. They take seconds to start: `GPT2_TEST_WORLDS=2,4` tests more."""


def launch(config: TrainConfig, nproc: int) -> subprocess.CompletedProcess[str]:
    flags = [f"--{name}={value}" for name, value in config.as_dict().items() if value != ""]
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
def run(tiny, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Trains in so many processes; one of them is this one."""

    def run(name: str, nproc: int, **changes: object) -> str:
        config = tiny(**{**SETTINGS, **changes}, out_dir=str(tmp_path / name))
        if nproc == 1:
            train(config)
        else:
            done = launch(config, nproc)
            assert done.returncode == 0, done.stderr
        return config.out_dir

    yield run
    torch.use_deterministic_algorithms(False)


def test_deterministic_runs_are_the_same_bit_for_bit(run) -> None:
    alone = run("alone", 1, deterministic=True)
    for n in WORLDS:
        other = run(f"{n}", n, deterministic=True)
        assert losses(other) == losses(alone)
        assert fingerprint(other) == fingerprint(alone)


def test_plain_runs_agree_but_for_rounding(run) -> None:
    outs = [run(f"{n}", n) for n in (1, *WORLDS)]
    for out in outs[1:]:
        agree(outs[0], out)
    assert len({fingerprint(out) for out in outs}) == len(outs)  # else the test above could not fail


SHARED = {"zero": {"zero_stage": 1}, "fsdp": {"parallel": "fsdp"}}


@pytest.mark.parametrize("kind", SHARED)
def test_shared_optimizers_and_parameters_train_the_same(kind: str, run, tmp_path: Path) -> None:
    task = {"ctx": "the cat", "endings": ["sat on a mat", "saw", "and two dogs", "run over"], "label": 1}
    (tmp_path / "h.jsonl").write_text(f"{json.dumps(task)}\n" * 3)  # a batch; one of the processes has none
    measured = {"hellaswag_interval": 6, "hellaswag_data": str(tmp_path / "h.jsonl")}

    def figures(out: str) -> list[tuple[float, float]]:
        return [(r["acc"], r["acc_norm"]) for r in read_log(Path(out)) if "acc" in r]

    alone = run("alone", 1, **measured)
    assert len(figures(alone)) == 3
    for n in WORLDS:
        shared = run(
            f"{kind}{n}", n, **SHARED[kind], **measured, sample_interval=6, sample_tokens=5, snapshot_interval=12
        )
        agree(alone, shared)
        assert_snapshot_is_the_checkpoint(Path(shared), 12)
        assert figures(alone) == figures(shared)
    # what is saved does not know of the sharing, and goes on shared in another way
    settings = {"init_from": "auto", "max_iters": 16, "lr_decay_iters": 16}
    other = "fsdp" if kind == "zero" else "zero"
    agree(run("alone", 1, **settings), run(f"{kind}{WORLDS[0]}", WORLDS[-1], **settings, **SHARED[other]))


@pytest.mark.parametrize("kind", SHARED)
def test_muon_trains_the_same_shared(kind: str, run) -> None:
    alone = run("alone", 1, optimizer="muon", max_iters=8)
    assert fingerprint(alone) != fingerprint(run("adamw", 1, max_iters=8))
    for n in WORLDS:
        shared = run(f"{kind}{n}", n, optimizer="muon", max_iters=8, **SHARED[kind])
        agree(alone, shared)
    settings = {"optimizer": "muon", "init_from": "auto", "max_iters": 12, "lr_decay_iters": 12}
    agree(run("alone", 1, **settings), run(f"{kind}{n}", n, **settings, **SHARED[kind]))


def assert_snapshot_is_the_checkpoint(out: Path, step: int) -> None:
    """The file that the processes wrote together has the weights of the checkpoint of the step, in bfloat16."""
    whole = torch_file(folder_of(out, step) / "model.safetensors")
    kept = torch_file(snapshot_file(out, step))
    assert kept.keys() == whole.keys()
    assert all(torch.equal(kept[name], weights.bfloat16()) for name, weights in whole.items())
    assert not list((out / "snapshots").glob(".*"))


def agree(one: str, other: str) -> None:
    """Losses, norms and weights are the same but for rounding."""
    for (event, step, *ours), (their_event, their_step, *theirs) in zip(losses(one), losses(other), strict=True):
        assert (event, step) == (their_event, their_step)
        pairs = [(x, y) for x, y in zip(ours, theirs, strict=True) if x is not None]
        assert all(x == pytest.approx(y, rel=2e-4) for x, y in pairs)
    mine, its = load_file(weights(one)), load_file(weights(other))
    assert all(abs(mine[name] - its[name]).max() < 1e-3 for name in mine)


def test_resumed_with_other_numbers_of_processes(run) -> None:
    legs = [1, *WORLDS, 1]
    steps = 25 * len(legs)
    schedule = {"lr_decay_iters": steps, "warmup_iters": 0, "deterministic": True}
    whole = run("whole", 1, **schedule, max_iters=steps)
    for leg, nproc in enumerate(legs, start=1):
        resumed = run("resumed", nproc, **schedule, init_from="auto", max_iters=25 * leg)
    assert fingerprint(resumed) == fingerprint(whole)


def test_a_batch_is_split_between_processes_that_have_no_micro_batch_each(run) -> None:
    """The step keeps its sequences: losses, norms and weights agree but for rounding."""
    settings = {"gradient_accumulation_steps": 1, "dropout": 0.0}
    agree(run("alone", 1, **settings), run("two", 2, **settings))
