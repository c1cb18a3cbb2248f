"""Measures the cross-entropy of a model over tokens, always in the same windows."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gpt2.answers import IGNORED, Answers
from gpt2.data.batches import evaluation_starts, gather
from gpt2.data.shards import Tokens
from gpt2.device import autocast, exact_float32
from gpt2.distributed.sharding import compute_device
from gpt2.distributed.world import ALONE, World
from gpt2.documents import document_mask
from gpt2.errors import UserError
from gpt2.evaluation.scoring import token_losses
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer

Progress = Callable[[int, int], None]
"""A function called after each batch with the windows computed and all windows. What it raises ends the work."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


class Window(NamedTuple):
    """A window is a model's context of consecutive tokens, which are computed together."""

    start: int
    """Offset of the first token."""
    skip: int
    """Number of first predictions that do not count, because an earlier window makes them."""


def blocks(tokens: Tokens, block_size: int, count: int) -> list[Window]:
    """Return at most `count` windows of `block_size` predictions, spread evenly over the tokens, without overlap.

    A `count` of 0 returns all of them.
    """
    return [Window(int(start), 0) for start in evaluation_starts(tokens, block_size, count)]


def sliding(length: int, block_size: int, stride: int) -> list[Window]:
    """Return windows of `block_size` predictions that together count each of `length` tokens except the first once.

    Each window ends `stride` tokens after the one before it. So every counted token after the first window has at
    least block_size - stride tokens of context, as in Hugging Face's guide to perplexity. The last window is moved
    back to end at the last token. `length` must be at least block_size + 1.
    """
    ends = [*range(block_size, length - 1, stride), length - 1]
    counted = [0, *ends]  # the end of the window before each one
    return [Window(end - block_size, block_size - (end - c)) for end, c in zip(ends, counted, strict=False)]


@dataclass(frozen=True)
class Loss:
    """Holds the losses of a model's predictions, summed by position."""

    nats: np.ndarray
    """Sum of the losses at each position of the context, float64 (block_size,)."""
    counts: np.ndarray
    """Number of predictions at each position, int64 (block_size,)."""
    ids: np.ndarray
    """Number of times that each token id was the target, int64 (V,)."""

    @property
    def mean(self) -> float:
        """Return the mean loss in nats per token."""
        return math.fsum(self.nats) / int(self.counts.sum())

    @property
    def by_position(self) -> list[float | None]:
        """Return the mean loss in nats per token at each position; None where nothing was predicted."""
        return [n / c if c else None for n, c in zip(self.nats.tolist(), self.counts.tolist(), strict=True)]

    def bits_per_byte(self, tokenizer: Tokenizer) -> float | None:
        """Return the loss in bits per byte of the predicted text; None if the text has no bytes.

        It is comparable between models with different tokenizers. Markers such as end-of-text count as tokens without
        bytes.
        """
        markers = {tokenizer.special.ids[text] for text in tokenizer.special.markers}
        sizes = {i: len(tokenizer.decode_bytes([i])) for i in np.flatnonzero(self.ids).tolist() if i not in markers}
        text = sum(size * int(self.ids[i]) for i, size in sizes.items())
        return math.fsum(self.nats) / math.log(2) / text if text else None


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Put the model into evaluation mode inside the `with` block; restore its mode (train or eval) afterwards.

    Matrix products in float32 do not use TF32 meanwhile, so that a checkpoint has the same loss wherever it is
    measured.
    """
    was_training = model.training
    model.eval()
    try:
        with exact_float32():
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
    answers: Answers | None = None,
    world: World = ALONE,
    progress: Progress = no_progress,
) -> Loss:
    """Return the losses of the predictions in `windows` of `block_size` tokens, `batch_size` windows at a time.

    `dtype` is that of matrix products. With an `eot_token`, which begins each document, attention stays inside a
    document. With `answers`, only their tokens count. The processes of a `world` share the batches, and all of them
    return the same losses, whatever their number. Sums are float64. The model keeps its mode (train or eval). Raises
    UserError where no token counts.
    """
    device = compute_device(next(model.parameters()))
    sums: list[tuple[int, np.ndarray]] = []
    counts = np.zeros(block_size, dtype=np.int64)
    ids = np.zeros(model.config.vocab_size, dtype=np.int64)
    windows_at_a_time = world.size * batch_size
    with evaluating(model):
        for first in range(0, len(windows), windows_at_a_time):
            world.beat("an evaluation")
            i = first + world.rank * batch_size
            is_new = i < len(windows)  # without a batch left, repeat one: a sharded model needs every process
            batch = windows[i : i + batch_size] if is_new else windows[:batch_size]
            x, y = gather(tokens, [window.start for window in batch], block_size, device, answers)
            with autocast(device, dtype):
                losses = token_losses(model, x, y, document_mask(x, eot_token))
            if is_new:  # on the CPU, because Apple's GPUs have no float64
                y = y.cpu()
                counted = (torch.arange(block_size) >= torch.tensor([[w.skip] for w in batch])) & (y != IGNORED)
                sums.append((i, (losses.cpu().double() * counted).sum(0).numpy()))
                counts += counted.sum(0).numpy()
                ids += np.bincount(y[counted].numpy(), minlength=len(ids))
            progress(min(first + windows_at_a_time, len(windows)), len(windows))
    by_window = sorted(itertools.chain.from_iterable(world.gather(sums)), key=lambda pair: pair[0])
    counts, ids = np.sum(world.gather(counts), axis=0), np.sum(world.gather(ids), axis=0)
    if not counts.any():
        raise UserError(
            "no measured token follows the special token of loss_after; prepare text that contains it, with --chat "
            "or --parse_special, and with --val for validation; measure more of the split; or leave --loss_after out"
        )
    return Loss(np.sum([nats for _, nats in by_window], axis=0), counts, ids)


def evaluate_loss(
    model: GPT,
    tokens: Tokens,
    *,
    block_size: int,
    batch_size: int,
    batches: int,
    dtype: str,
    eot_token: int | None = None,
    answers: Answers | None = None,
    world: World = ALONE,
    progress: Progress = no_progress,
) -> float:
    """Return the mean loss in nats per token over `batches` batches of windows spread evenly over `tokens`.

    With 0 batches, the windows cover all tokens. The other arguments are those of `measure`.
    """
    windows = blocks(tokens, block_size, batches * batch_size)
    options = {"dtype": dtype, "eot_token": eot_token, "answers": answers, "world": world, "progress": progress}
    return measure(model, tokens, windows, block_size=block_size, batch_size=batch_size, **options).mean
