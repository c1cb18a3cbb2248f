"""NCCL with one process, and with two where there are two GPUs. A rehearsal on a CPU uses gloo."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import final_weights

from gpt2.chunked_loss import TrainingLoss
from gpt2.distributed.gradients import DataParallel
from gpt2.distributed.sharding import full_tensor, shard_model
from gpt2.model import GPT, GPTConfig
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

Make = Callable[..., TrainConfig]
CONFIG = GPTConfig(block_size=8, vocab_size=50, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def group(where: torch.device) -> Iterator[None]:
    """A process group of this process alone, with the backends that a run has."""
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients_of(loss_of: TrainingLoss, idx: torch.Tensor) -> list[torch.Tensor]:
    loss_of(idx, idx).backward()
    found = [p.grad.clone() for p in loss_of.parameters() if p.grad is not None]
    loss_of.zero_grad(set_to_none=True)
    return found


def test_sums_of_one_process_change_nothing(group: None, where: torch.device) -> None:
    torch.manual_seed(0)
    loss_of = TrainingLoss(GPT(CONFIG).to(where))
    idx = torch.randint(50, (2, 8), device=where)
    expected = gradients_of(loss_of, idx)
    sync = DataParallel(loss_of, bucket_bytes=10_000)
    with sync.micro_batch(is_last=True):
        sync.loss_of(idx, idx).backward()
    sync.finish()
    for parameter, gradient in zip(loss_of.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("cpu_offload", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_of_one_process_are_all_of_the_model(
    dtype: str, cpu_offload: bool, group: None, where: torch.device
) -> None:
    torch.manual_seed(0)
    loss_of = TrainingLoss(GPT(CONFIG).to(where))
    idx = torch.randint(50, (2, 8), device=where)
    expected = gradients_of(loss_of, idx)
    shard_model(loss_of.model, where, 1, 1, cpu_offload, half=dtype == "bfloat16")
    with torch.autocast(where.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss_of(idx, idx).backward()
    tolerance = {"rtol": 0.1, "atol": 2e-3} if dtype == "bfloat16" else {}
    for parameter, gradient in zip(loss_of.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(full_tensor(parameter.grad).to(where), gradient, **tolerance)


WAYS = {
    "ddp": {},
    "zero": {"zero_stage": 1},
    "fsdp": {"parallel": "fsdp"},
    "offloaded": {"parallel": "fsdp", "cpu_offload": True},
    "muon": {"optimizer": "muon"},
    "deterministic": {"deterministic": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_two_gpus_train_as_one(way: str, on_gpu: Make, where: torch.device, tmp_path: Path) -> None:
    if where.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    settings = {**WAYS[way], "dtype": "float32", "gradient_accumulation_steps": 4, "max_iters": 6}
    device = "cpu" if where.type == "cpu" else "cuda"
    one = on_gpu(**settings, device=device)
    two = on_gpu(**settings, device=device, out_dir=str(tmp_path / "two"))
    train(one)
    flags = [f"--{name}={value}" for name, value in two.as_dict().items() if value != ""]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpt2", "train", "--nproc=2", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logs = [[r for r in read_log(tmp_path / run) if r["event"] == "train"] for run in ("run", "two")]
    for first, second in zip(*logs, strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-3)
        assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-2)
    if way == "deterministic":
        assert final_weights(tmp_path / "two") == final_weights(tmp_path / "run")
