"""Cross-entropy of a model over tokens, at places that are always the same."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gpt2.data.batches import document_mask, evaluation_starts, gather
from gpt2.data.shards import Tokens
from gpt2.device import autocast
from gpt2.distributed.world import ALONE, World
from gpt2.evaluation.scoring import token_losses
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

Progress = Callable[[int, int], None]
"""Called after each batch with the windows computed, and of all; what it raises ends the work."""


def no_progress(done: int, total: int) -> None:
    """The progress of work that nobody watches."""


class Window(NamedTuple):
    """Tokens to compute together: a model's context from `start` on."""

    start: int
    skip: int
    """How many of its first predictions do not count, because an earlier window has made them."""


def blocks(tokens: Tokens, block_size: int, count: int) -> list[Window]:
    """At most `count` windows spread evenly over the tokens, without overlap; 0 is all of them."""
    return [Window(int(start), 0) for start in evaluation_starts(tokens, block_size, count)]


def sliding(length: int, block_size: int, stride: int) -> list[Window]:
    """Windows of `block_size` predictions that count every one of `length` tokens but the first, once.

    Each goes on `stride` tokens after the last one's end, so that all but those of the first window have at least
    block_size - stride tokens before them (as Hugging Face's guide to perplexity does it). The last is moved back to
    end with the tokens. Needs at least block_size + 1 tokens.
    """
    ends = [*range(block_size, length - 1, stride), length - 1]
    before = [0, *ends]
    return [Window(end - block_size, block_size - (end - b)) for end, b in zip(ends, before, strict=False)]


@dataclass(frozen=True)
class Loss:
    """What a model's predictions cost."""

    nats: np.ndarray
    """Sum of the losses at each position of the context, float64 (block_size,)."""
    counts: np.ndarray
    """Predictions at each position, int64 (block_size,)."""
    ids: np.ndarray
    """How often each token id was to be predicted, int64 (V,)."""

    @property
    def mean(self) -> float:
        """Nats a token."""
        return math.fsum(self.nats) / int(self.counts.sum())

    @property
    def by_position(self) -> list[float | None]:
        """Nats a token at each position; None where nothing was predicted."""
        return [n / c if c else None for n, c in zip(self.nats.tolist(), self.counts.tolist(), strict=True)]

    def bits_per_byte(self, tokenizer: Tokenizer) -> float | None:
        """Bits for each byte of the text, which compares models with different tokens. End-of-text has no bytes.

        None where no text was predicted.
        """
        sizes = {i: len(tokenizer.decode_bytes([i])) for i in np.flatnonzero(self.ids).tolist() if i != tokenizer.eot}
        text = sum(size * int(self.ids[i]) for i, size in sizes.items())
        return math.fsum(self.nats) / math.log(2) / text if text else None


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Context in which the model is in evaluation mode; afterwards it is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def measure(
    model: GPT,
    tokens: Tokens,
    windows: Sequence[Window],
    *,
    block_size: int,
    batch_size: int,
    dtype: str,
    eot_token: int | None = None,
    world: World = ALONE,
    progress: Progress = no_progress,
) -> Loss:
    """The losses of the predictions in `windows` of `block_size` tokens.

    With an `eot_token`, attention stays inside a document, which that token begins. The processes of a `world` share
    the batches, and all get the same figures, which do not depend on the number of processes. Sums are float64. The
    model keeps its mode (train or eval).
    """
    device = next(model.parameters()).device
    sums: list[tuple[int, np.ndarray]] = []
    ids = np.zeros(model.config.vocab_size, dtype=np.int64)
    all_rows = world.size * batch_size
    with evaluating(model):
        for first in range(0, len(windows), all_rows):
            world.beat("an evaluation")
            i = first + world.rank * batch_size
            is_mine = i < len(windows)  # a process that has none left computes one again: a sharded model needs all
            batch = windows[i : i + batch_size] if is_mine else windows[:batch_size]
            x, y = gather(tokens, [window.start for window in batch], block_size, device)
            with autocast(device, dtype):
                losses = token_losses(model, x, y, document_mask(x, eot_token))
            if is_mine:  # on the CPU, because Apple's GPUs have no float64
                counted = torch.arange(block_size) >= torch.tensor([[w.skip] for w in batch])
                sums.append((i, (losses.cpu().double() * counted).sum(0).numpy()))
                ids += np.bincount(y.cpu()[counted].numpy(), minlength=len(ids))
            progress(min(first + all_rows, len(windows)), len(windows))
    every = sorted(itertools.chain.from_iterable(world.gather(sums)), key=lambda pair: pair[0])
    counts = np.bincount([window.skip for window in windows], minlength=block_size).cumsum()
    return Loss(np.sum([nats for _, nats in every], axis=0), counts, np.sum(world.gather(ids), axis=0))


def evaluate_loss(
    model: GPT,
    tokens: Tokens,
    *,
    block_size: int,
    batch_size: int,
    batches: int,
    dtype: str,
    eot_token: int | None = None,
    world: World = ALONE,
    progress: Progress = no_progress,
) -> float:
    """Mean loss in nats a token over `batches` batches of blocks spread evenly over `tokens`; 0 is all blocks.

    The rest is as in `measure`.
    """
    windows = blocks(tokens, block_size, batches * batch_size)
    shape = {"block_size": block_size, "batch_size": batch_size}
    found = measure(model, tokens, windows, **shape, dtype=dtype, eot_token=eot_token, world=world, progress=progress)
    return found.mean
