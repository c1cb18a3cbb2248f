"""What a batch holds: a pure function of (tokens, seed, step, sample index).

Nothing here remembers a position, so resuming costs nothing, and the samples of a step are the same
whatever the number of processes: each takes its own indices of the same list.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2.data.shards import Tokens
from gpt2.errors import UserError


def random_starts(windows: int, seed: int, step: int, count: int) -> np.ndarray:
    """Where the `count` samples of a step begin, drawn evenly from `windows` places: int64 (count,).

    Sample i is the i-th output of Philox4x64 (Salmon et al. 2011) with the seed as key and the step as
    counter: raw bits, which NumPy keeps stable between its releases, unlike its distributions.
    """
    bits = np.random.Philox(key=seed, counter=[0, 0, step, 0]).random_raw(count)
    return (bits % np.uint64(windows)).astype(np.int64)  # the bias of the remainder is below 2^-20


def shuffled_starts(length: int, block_size: int, seed: int, step: int, count: int) -> np.ndarray:
    """Where the `count` samples of a step begin when every block comes once an epoch, in a new order each time.

    The blocks of an epoch tile the `length` tokens from a random first one, so that their borders move
    from epoch to epoch; fewer than two blocks at the ends stay out.
    """
    blocks = max(1, (length - 1) // block_size - 1)
    sample = np.arange(step * count, (step + 1) * count, dtype=np.int64)
    epoch, position = np.divmod(sample, blocks)
    starts = np.empty_like(sample)
    for e in np.unique(epoch):
        key = np.random.Philox(key=seed, counter=[0, 0, e, 1]).random_raw(5)
        first = int(key[4] % np.uint64(min(block_size, length - blocks * block_size)))
        chosen = epoch == e
        starts[chosen] = permute(position[chosen], blocks, key[:4]) * block_size + first
    return starts


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of 0 … n-1 at the int64 `positions`, without holding the whole of it.

    Four Feistel rounds over the next power of four, walking on while outside (Black & Rogaway 2002).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)

    def rounds(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << half) | right

    x = rounds(positions.astype(np.uint64))
    while (outside := x >= np.uint64(n)).any():
        x[outside] = rounds(x[outside])
    return x.astype(np.int64)


def sequential_starts(lengths: Sequence[int], block_size: int, rows: int, step: int, count: int) -> np.ndarray:
    """Where the `count` samples of a step begin when walking shards of these `lengths`, again and again.

    As llm.c's loader walks: each shard holds as many batches of `rows` blocks as fit with one token more, and what
    is left over at its end is skipped. That number is the same for all processes (llm.c's differs between ranks).
    """
    samples = (np.asarray(lengths, dtype=np.int64) - 1) // (rows * block_size) * rows  # of each shard
    ends = np.cumsum(samples)
    if not ends[-1]:
        raise UserError(
            f"no shard holds a batch of {rows}·{block_size} tokens and one more, as data_order=sequential needs; "
            "lower --batch_size or --block_size, or use --data_order=shuffled"
        )
    sample = np.arange(step * count, (step + 1) * count, dtype=np.int64) % ends[-1]
    shard = np.searchsorted(ends, sample, side="right")
    begin = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    return begin[shard] + (sample - (ends - samples)[shard]) * block_size


def sample_starts(
    lengths: Sequence[int], block_size: int, order: str, seed: int, step: int, count: int, rows: int
) -> np.ndarray:
    """Start offsets of all `count` samples of optimizer step `step`: int64 (count,).

    lengths: tokens of each shard; the offsets count through all of them.

    order: `random`, any window with equal chance; `shuffled`, every block once an epoch; `sequential`,
    block after block of each shard, in batches of `rows`.
    """
    match order:
        case "random":
            return random_starts(sum(lengths) - block_size, seed, step, count)
        case "shuffled":
            return shuffled_starts(sum(lengths), block_size, seed, step, count)
        case _:
            return sequential_starts(lengths, block_size, rows, step, count)


def micro_batches(starts: np.ndarray, count: int, rank: int, world_size: int) -> list[tuple[int, np.ndarray]]:
    """The part of an update that is process `rank`'s: its micro-batches, with their numbers among all `count`.

    starts: int64 (rows,), where the rows of the whole update begin. The processes' parts follow one another.
    """
    assert count % world_size == 0, "every process has as many micro-batches"
    mine = count // world_size
    return list(enumerate(np.split(starts, count)))[rank * mine : (rank + 1) * mine]


def align(tokens: Tokens, starts: np.ndarray, block_size: int, eot: int) -> np.ndarray:
    """`starts`, each moved forward to the next end-of-text token, with which a document begins: int64, as many.

    A start stays where no such token is within the next `block_size`, or where the row would then leave the split.
    """
    last = len(tokens) - block_size - 1
    moved = starts.copy()
    for row, start in enumerate(starts.tolist()):
        begins = tokens[start : min(start + block_size, last) + 1] == eot
        if begins.any():
            moved[row] += begins.argmax()
    return moved


def evaluation_starts(tokens: Tokens, block_size: int, count: int) -> np.ndarray:
    """Start offsets of the blocks to evaluate on: at most `count`, evenly spread over the split, no two overlapping.

    `count` of 0, or more than there are, means all of them.
    """
    blocks = (len(tokens) - 1) // block_size
    if count == 0 or count >= blocks:
        return np.arange(blocks, dtype=np.int64) * block_size
    return np.arange(count, dtype=np.int64) * blocks // count * block_size


def gather(
    tokens: Tokens, starts: Sequence[int] | np.ndarray, block_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The batch (x, y) whose rows begin at `starts`: int64 (B, block_size) each, y one token ahead of x."""
    rows = np.stack([tokens[s : s + block_size + 1] for s in starts]).astype(np.int64)
    batch = torch.from_numpy(rows)
    batch = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    return batch[:, :-1], batch[:, 1:]


def document_numbers(x: Tensor, boundary: int | None) -> Tensor | None:
    """The document of each token, counted along its row, for `GPT.forward`: int64 (B, T) like `x`.

    A document begins with the token `boundary`, its end-of-text: that is what its first token is predicted from.
    None where there is no boundary to heed.
    """
    return None if boundary is None else (x == boundary).cumsum(dim=1)
