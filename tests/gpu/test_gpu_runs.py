"""Runs on a GPU: what they learn, the same bits where they are promised, and steps for which nothing waits."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from runs import curve, final_weights

from gpt2 import accounting
from gpt2.accounting import Sharing
from gpt2.model import GPTConfig
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train
from gpt2.training.setup import set_up
from gpt2.training.step import train_step

Make = Callable[..., TrainConfig]
KINDS = {
    "AdamW, bfloat16": {"dtype": "bfloat16"},
    "AdamW, float16": {"dtype": "float16"},
    "Muon, bfloat16": {"dtype": "bfloat16", "optimizer": "muon"},
    "dropout": {"dtype": "bfloat16", "dropout": 0.1},
    "checkpointing": {"dtype": "bfloat16", "activation_checkpointing": True},
}


def losses(config: TrainConfig) -> list[float]:
    """Return the loss of every step of a run."""
    return [r["loss"] for r in read_log(Path(config.out_dir)) if r["event"] == "train"]


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns(kind: str, is_compiled: bool, on_gpu: Make) -> None:
    config = on_gpu(**KINDS[kind], compile=is_compiled, gradient_accumulation_steps=2)
    result = train(config)
    assert result.val_loss is not None and result.val_loss < losses(config)[0] - 0.3


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_run_in_float32_follows_the_cpu(is_compiled: bool, on_gpu: Make, tiny: Make, tmp_path: Path) -> None:
    shape = {"n_embd": 64, "block_size": 32, "gradient_accumulation_steps": 2}
    found = on_gpu(**shape, dtype="float32", compile=is_compiled)
    expected = tiny(**shape, out_dir=str(tmp_path / "cpu"))
    train(found)
    train(expected)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-3)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_deterministic_run_and_its_resumed_twin_have_the_same_bits(
    optimizer: str, is_compiled: bool, on_gpu: Make, tmp_path: Path
) -> None:
    settings = {"deterministic": True, "dtype": "bfloat16", "compile": is_compiled, "optimizer": optimizer}
    settings |= {"dropout": 0.1, "gradient_accumulation_steps": 4, "lr_decay_iters": 20, "warmup_iters": 1}
    settings |= {"sample_interval": 10, "sample_tokens": 5, "sample_top_p": 0.9}
    train(on_gpu(**settings))
    for steps in (10, 20):
        train(on_gpu(**settings, max_iters=steps, init_from="auto", out_dir=str(tmp_path / "resumed")))
    assert final_weights(tmp_path / "resumed") == final_weights(tmp_path / "run")
    found, expected = ([r for r in curve(tmp_path / run) if r[0] == "train"] for run in ("resumed", "run"))
    assert found == expected


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "documents"])
def test_nothing_waits_for_the_gpu_in_a_step(
    kind: str, is_compiled: bool, on_gpu: Make, heeding: dict, nothing_waits: Callable[[], AbstractContextManager]
) -> None:
    settings = {**heeding, "dtype": "bfloat16"} if kind == "documents" else KINDS[kind]
    run = set_up(on_gpu(**settings, compile=is_compiled, gradient_accumulation_steps=2), lambda line: None)
    for number in range(4):
        if number < 2:  # the state of the optimizers is made
            train_step(run)
        else:
            with nothing_waits():
                train_step(run)
        run.state.step += 1


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("changes", [{}, {"dtype": "float32"}, {"activation_checkpointing": True}])
def test_memory_is_what_plan_says(changes: dict, is_compiled: bool, on_gpu: Make, where: torch.device) -> None:
    large = {"n_layer": 6, "n_head": 8, "n_embd": 512, "block_size": 512, "batch_size": 16, "vocab_size": 50257}
    shape = {**large, "gradient_accumulation_steps": 2, "dtype": "bfloat16", **changes}
    if where.type == "cpu":
        shape |= {"n_layer": 1, "n_embd": 32, "block_size": 16, "batch_size": 2}
    run = set_up(on_gpu(**shape, compile=is_compiled), lambda line: None)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    for _ in range(3):
        train_step(run).loss.item()
        run.state.step += 1
    planned = accounting.memory(
        run.model.config,
        Sharing(),
        run.config.batch_size,
        half=run.config.dtype != "float32",
        compiled=run.config.compile,
        activation_checkpointing=run.config.activation_checkpointing,
        device=where.type,
    )
    assert isinstance(run.model.config, GPTConfig) and planned.total > 0
    if where.type == "cuda":
        assert torch.cuda.max_memory_allocated(where) == pytest.approx(planned.total, rel=0.1)
