"""Mean cross-entropy over a split, at places that are always the same."""

import itertools

import torch

from gpt2.data.batches import document_numbers, evaluation_starts, gather
from gpt2.data.shards import Tokens
from gpt2.device import autocast
from gpt2.distributed.world import ALONE, World
from gpt2.model import GPT


@torch.no_grad()
def evaluate_loss(
    model: GPT,
    tokens: Tokens,
    *,
    block_size: int,
    batch_size: int,
    batches: int,
    dtype: str,
    boundary: int | None = None,
    world: World = ALONE,
) -> float:
    """Mean loss in nats a token over `batches` batches of blocks spread evenly over `tokens`; 0 is all blocks.

    Attention does not look back over the token `boundary`, where one is given. The processes of a `world` share the
    batches, and all get the same mean, which does not depend on how many they are.
    Leaves the model in the mode (train or eval) it was in.
    """
    device = next(model.parameters()).device
    starts = evaluation_starts(tokens, block_size, batches * batch_size)
    was_training = model.training
    model.eval()
    losses: list[tuple[int, float]] = []
    all_rows = world.size * batch_size
    for i in range(world.rank * batch_size, -(-len(starts) // all_rows) * all_rows, all_rows):
        world.beat("an evaluation")
        is_mine = i < len(starts)  # whoever has none left computes along, since a sharded model needs all processes
        rows = starts[i : i + batch_size] if is_mine else starts[:batch_size]
        x, y = gather(tokens, rows, block_size, device)
        with autocast(device, dtype):
            _, loss = model(x, y, documents=document_numbers(x, boundary))
        if is_mine:
            losses.append((i, loss.item() * len(rows)))
    model.train(was_training)
    every = sorted(itertools.chain.from_iterable(world.gather(losses)))
    return sum(loss for _, loss in every) / len(starts)
