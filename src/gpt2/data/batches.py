"""Which sequences an optimizer step trains on: a pure function of (tokens, seed, step, index).

Nothing here remembers a position, so resuming costs nothing, and the sequences of a step are the same for every
number of processes: each process takes its own share of one list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpt2.answers import IGNORED, Answers
from gpt2.data.shards import Tokens
from gpt2.errors import UserError


class MicroBatch(NamedTuple):
    """A micro-batch is what one forward and backward pass computes."""

    number: int
    """Its number among the micro-batches of the optimizer step, over all processes."""
    x: Tensor
    """Inputs, int64 (B, T)."""
    y: Tensor
    """Targets, int64 (B, T): each position's next token, or -1 where it has no loss."""
    weight: float = 1.0
    """Number of its targets that have a loss, in relation to the mean over the micro-batches of the step."""


@dataclass(frozen=True)
class Batches:
    """Batches tell which sequences of a split every optimizer step trains on, and read them."""

    tokens: Tokens
    block_size: int
    """T, the number of tokens in a sequence."""
    batch_size: int
    """B, the number of sequences in a micro-batch."""
    accumulation: int
    """Number of micro-batches in an optimizer step, over all processes."""
    order: str
    """`random`, `shuffled` or `sequential`; see `sample_starts`."""
    seed: int
    eot_token: int | None = None
    """Id of the end-of-text token, with which a document begins."""
    align_documents: bool = False
    """Sequences begin at a document where one begins nearby; see `align`."""
    overfit_step: int | None = None
    """Every optimizer step has the batch of this one."""
    answers: Answers | None = None
    """Only the tokens of answers have a loss; None for all tokens."""

    def micro_batches(self, step: int, rank: int, world_size: int, device: torch.device) -> Iterator[MicroBatch]:
        """Yield the micro-batches of the zero-based optimizer step `step` that process `rank` computes, on `device`.

        Each process has the same number of consecutive micro-batches. Raises UserError for damaged token files.
        """
        assert self.accumulation % world_size == 0, "every process has the same number of micro-batches"
        share = self.accumulation // world_size
        starts = np.split(self.starts(step), self.accumulation)
        weights = self._weights(starts)
        for number in range(rank * share, (rank + 1) * share):
            x, y = gather(self.tokens, starts[number], self.block_size, device, self.answers)
            yield MicroBatch(number, x, y, weights[number])

    def _weights(self, starts: Sequence[np.ndarray]) -> list[float]:
        """Return weights of the micro-batches of a step, with which the mean of their losses is that of all targets.

        Every process counts the targets of all, so that none has to wait for the others.
        """
        if self.answers is None:
            return [1.0] * len(starts)
        host = torch.device("cpu")
        targets = [gather(self.tokens, some, self.block_size, host, self.answers)[1] for some in starts]
        counts = [int((y != IGNORED).sum()) for y in targets]
        return [count * len(counts) / max(1, sum(counts)) for count in counts]

    def starts(self, step: int) -> np.ndarray:
        """Return the offsets of all sequences of an optimizer step, micro-batch by micro-batch: int64 (count,)."""
        starts = sample_starts(
            self.tokens.lengths,
            self.block_size,
            self.order,
            self.seed,
            step if self.overfit_step is None else self.overfit_step,
            self.accumulation * self.batch_size,
            self.batch_size,
        )
        if self.align_documents:
            assert self.eot_token is not None, "align_documents needs an end-of-text token"
            starts = align(self.tokens, starts, self.block_size, self.eot_token)
        return starts


def random_starts(windows: int, seed: int, step: int, count: int) -> np.ndarray:
    """Draw the offsets of the `count` sequences of a step evenly from the offsets below `windows`: int64 (count,).

    Sample i is the i-th output of Philox4x64 (Salmon et al. 2011) with the seed as key and the step as
    counter: raw bits, which NumPy keeps stable between its releases, unlike its distributions.
    """
    bits = np.random.Philox(key=seed, counter=[0, 0, step, 0]).random_raw(count)
    return (bits % np.uint64(windows)).astype(np.int64)  # the bias of the remainder is below 2^-20


def shuffled_starts(length: int, block_size: int, seed: int, step: int, count: int) -> np.ndarray:
    """Return the offsets of the `count` sequences of a step when an epoch has every block once, in a new order.

    The blocks of an epoch tile the `length` tokens from a random first offset, so that their borders move
    from epoch to epoch; less than two blocks at the ends are omitted. The result is int64 (count,).
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
    """Return a keyed permutation of 0 … n-1 at the int64 `positions`, without the whole permutation in memory.

    Four Feistel rounds permute the numbers below the next power of four, and are repeated while the result is n or
    more (Black & Rogaway 2002).
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


def sequential_starts(lengths: Sequence[int], block_size: int, batch_size: int, step: int, count: int) -> np.ndarray:
    """Return the offsets of the `count` sequences of a step that walks shards of these `lengths`, again and again.

    It walks like llm.c's loader: each shard has as many micro-batches of `batch_size` blocks as fit with one more
    token, and the rest at its end is skipped. That number is the same for all processes (llm.c's differs between
    ranks). The result is int64 (count,). Raises UserError where no shard has a micro-batch.
    """
    samples = (np.asarray(lengths, dtype=np.int64) - 1) // (batch_size * block_size) * batch_size  # of each shard
    ends = np.cumsum(samples)
    if not ends[-1]:
        raise UserError(
            f"no shard has {batch_size}·{block_size} tokens and one more, as data_order=sequential needs; "
            "lower --batch_size or --block_size, or use --data_order=shuffled"
        )
    sample = np.arange(step * count, (step + 1) * count, dtype=np.int64) % ends[-1]
    shard = np.searchsorted(ends, sample, side="right")
    begin = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    return begin[shard] + (sample - (ends - samples)[shard]) * block_size


def sample_starts(
    lengths: Sequence[int], block_size: int, order: str, seed: int, step: int, count: int, batch_size: int
) -> np.ndarray:
    """Return the offsets of all `count` sequences of the zero-based optimizer step `step`: int64 (count,).

    lengths: number of tokens in each shard; offsets count through all shards, and only `sequential` keeps sequences
    inside a shard. order: `random` takes any offset with equal chance, `shuffled` every block once an epoch, and
    `sequential` block after block of each shard, in micro-batches of `batch_size`.
    """
    match order:
        case "random":
            return random_starts(sum(lengths) - block_size, seed, step, count)
        case "shuffled":
            return shuffled_starts(sum(lengths), block_size, seed, step, count)
        case "sequential":
            return sequential_starts(lengths, block_size, batch_size, step, count)
        case _:
            raise AssertionError(f"no data order {order!r}")


def align(tokens: Tokens, starts: np.ndarray, block_size: int, eot_token: int) -> np.ndarray:
    """Return `starts`, each moved forward to the next end-of-text token, where a document begins: int64 (count,).

    A start stays where none of the next `block_size` tokens is one, or where the sequence would leave the split.
    """
    last = len(tokens) - block_size - 1
    moved = starts.copy()
    for i, start in enumerate(starts.tolist()):
        begins = tokens[start : min(start + block_size, last) + 1] == eot_token
        if begins.any():
            moved[i] += begins.argmax()
    return moved


def evaluation_starts(tokens: Tokens, block_size: int, count: int) -> np.ndarray:
    """Return the offsets of at most `count` blocks, spread evenly over the split without overlap: int64.

    A `count` of 0, or of more blocks than the split has, means all of them.
    """
    blocks = (len(tokens) - 1) // block_size
    if count == 0 or count >= blocks:
        return np.arange(blocks, dtype=np.int64) * block_size
    return np.arange(count, dtype=np.int64) * blocks // count * block_size


def gather(
    tokens: Tokens,
    starts: Sequence[int] | np.ndarray,
    block_size: int,
    device: torch.device,
    answers: Answers | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the sequences that begin at `starts`: inputs and, one token ahead, targets, int64 (B, block_size) each.

    With `answers`, the targets outside of them are -1.
    """
    batch = torch.from_numpy(np.stack([tokens[s : s + block_size + 1] for s in starts]).astype(np.int64))
    if answers is not None:
        batch = torch.cat([batch, answers.only(batch[:, :-1], batch[:, 1:])], dim=1)
    batch = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    return batch[:, :block_size], batch[:, -block_size:]
