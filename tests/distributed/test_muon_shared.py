"""Who makes which matrices orthogonal, where every process has some rows of each."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from gpt2.distributed.engines import wrapped
from gpt2.distributed.world import World
from gpt2.model import GPT, GPTConfig, Objective
from gpt2.optim import muon
from gpt2.optim.optimizers import make_optimizers

LAYERS = 3


def step(rank: int, size: int, folder: str) -> None:
    """Be one process: make an update and write down how many matrices were computed here."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=4, vocab_size=11, n_layer=LAYERS, n_head=2, n_embd=8))
    engine = wrapped(
        model,
        model.transformer.h,
        Objective(model),
        World(rank, size, rank),
        torch.device("cpu"),
        micro_batches=size,
        deterministic=False,
        parallel="fsdp",
        compile_blocks=False,
        cpu_offload=False,
    )
    optimizers = make_optimizers(model, 1e-3, (0.9, 0.95), 0.1, muon={"lr": 0.02})
    idx = torch.tensor([[1, 2, 3]])
    with engine.micro_batch(True):
        engine.forward(idx, idx).backward()
    original, counts = muon.orthogonal, []

    def counting(matrices: Tensor, *settings: object) -> Tensor:
        counts.append(len(matrices))
        return original(matrices, *settings)

    muon.orthogonal = counting
    for optimizer in optimizers:
        optimizer.step()
    Path(folder, str(rank)).write_text(str(sum(counts)))
    dist.destroy_process_group()


def test_each_process_computes_some_of_the_matrices(tmp_path: Path) -> None:
    mp.spawn(step, (2, str(tmp_path)), nprocs=2)
    counts = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    # of each layer q, k and v, and three more; of three of a shape one process has two
    assert counts == [2 * 6, 1 * 6]
