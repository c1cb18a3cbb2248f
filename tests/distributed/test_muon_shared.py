"""Which process orthogonalizes which matrices, where every process has a shard of each, or all of them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from gpt2.chunked_loss import TrainingLoss
from gpt2.distributed.gradients import synchronize_gradients
from gpt2.distributed.sharding import full_tensor
from gpt2.distributed.world import World
from gpt2.model import GPT, GPTConfig
from gpt2.optim import muon
from gpt2.optim.optimizers import make_optimizers

ORTHOGONALIZED = muon.orthogonalized
CONFIG = GPTConfig(block_size=4, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


def update(rank: int, size: int, folder: str, max_stack: int) -> None:
    """Be one process of some, or alone: make two steps each way, and save how many matrices were computed here."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{size}", rank=rank, world_size=size)
    muon.MAX_STACK = max_stack
    made = {
        "fsdp": steps("fsdp", World(rank, size), 1),
        "ddp": steps("ddp", World(rank, size), size),
        "unshared": steps("ddp", World(rank, size), 1),
    }
    torch.save(made, f"{folder}/{rank} of {size}")
    dist.destroy_process_group()


def steps(parallel: str, world: World, processes: int) -> tuple[int, dict[str, Tensor]]:
    """Make two steps; return the number of matrices that were orthogonalized here in each, and the weights."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    device, settings = torch.device("cpu"), {"micro_batches": world.size, "deterministic": False}
    gradients = synchronize_gradients(TrainingLoss(model), world, device, parallel=parallel, **settings)
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon={"lr": 0.02, "processes": processes})
    counts: list[int] = []

    def counting(matrices: Tensor, *settings: object) -> Tensor:
        counts.append(len(matrices))
        return ORTHOGONALIZED(matrices, *settings)

    muon.orthogonalized = counting
    idx = torch.tensor([[1, 2, 3]])
    for _ in range(2):
        with gradients.micro_batch(True):
            (gradients.loss_of(idx, idx) / world.size).backward()
        gradients.finish()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return sum(counts) // 2, {name: full_tensor(p.detach()).clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("max_stack", "counts"), [(2**20, [6, 6, 0]), (1, [6, 6, 0])])
def test_each_process_computes_some_of_the_matrices(max_stack: int, counts: list[int], tmp_path: Path) -> None:
    """Of each of two layers q, k and v, and three more. Three processes have unequal rows, and one has no matrix."""
    for size in (1, 3):
        mp.spawn(update, (size, str(tmp_path), max_stack), nprocs=size)
    found = [torch.load(tmp_path / f"{rank} of 3") for rank in range(3)]
    _, alone = torch.load(tmp_path / "0 of 1")["unshared"]
    for kind, expected_counts in {"fsdp": counts, "ddp": counts, "unshared": [12, 12, 12]}.items():
        assert [made[kind][0] for made in found] == expected_counts
        for made in found:
            for name, expected in alone.items():
                torch.testing.assert_close(made[kind][1][name], expected, rtol=0, atol=1e-5)
    for made in found:
        assert all(torch.equal(weights, made["unshared"][1][name]) for name, weights in made["ddp"][1].items())
