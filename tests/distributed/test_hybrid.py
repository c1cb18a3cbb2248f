"""Shards inside a machine and replicas between machines, here of four processes that behave as two machines.

The four processes are started once, and train one run after the other.
"""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from test_equal import SETTINGS, agree, losses

from gpt2.tensor_file import Layout
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

Runs = list[tuple[TrainConfig, int]]
"""Settings of runs, each with a port of its own."""


def train_all(rank: int, runs: Runs) -> None:
    """Be one process of four, two on each machine."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank % 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    os.environ |= {name: str(value) for name, value in names.items()}
    written: list[str] = []
    original = Layout.write

    def write(layout: Layout, path: Path, shards: dict) -> None:
        written.extend(shards)
        original(layout, path, shards)

    Layout.write = write
    for config, port in runs:
        os.environ["MASTER_PORT"] = str(port)
        written.clear()
        train(config)
        is_copy = config.parallel == "hsdp" and rank >= 2
        assert all(name.endswith("/step") for name in written) or not is_copy, "the first machine has written it"


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def test_hybrid_sharding_trains_and_resumes_as_one_process_does(tiny, tmp_path: Path) -> None:
    """Fresh and resumed: hybrid, then with full models, then hybrid again; and sharded with blocks in bfloat16."""
    base = {**SETTINGS, "eval_interval": 0, "eval_iters": 1, "lr_decay_iters": 12, "warmup_iters": 1}
    muon, half = {"optimizer": "muon", "init_from": "auto"}, {"dtype": "bfloat16", "max_iters": 3}
    runs: Runs = []
    for number, parallel in enumerate(("hsdp", "ddp", "hsdp"), start=1):
        leg = {**base, **muon, "max_iters": 3 * number}
        train(tiny(**leg, out_dir=str(tmp_path / "alone")))
        runs.append((tiny(**leg, parallel=parallel, out_dir=str(tmp_path / "four")), free_port()))
    train(tiny(**base | half, out_dir=str(tmp_path / "alone in bfloat16")))
    runs.append((tiny(**base | half, parallel="fsdp", out_dir=str(tmp_path / "four in bfloat16")), free_port()))
    mp.spawn(train_all, (runs,), nprocs=4)
    agree(str(tmp_path / "alone"), str(tmp_path / "four"))
    expected, found = (losses(str(tmp_path / f"{name} in bfloat16")) for name in ("alone", "four"))
    for values, others in zip(expected, found, strict=True):
        assert [x for x in others[2:] if x] == pytest.approx([x for x in values[2:] if x], rel=0.02)
    assert expected != found
