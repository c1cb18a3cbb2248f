"""The speed of making batches."""

import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.data.batches import gather, sample_starts
from gpt2.data.shards import Tokens
from gpt2.device import free_memory
from gpt2.errors import UserError
from gpt2.training.setting import CONTEXT, SAMPLES, SEQUENCES

SEED = 1337
BYTES_PER_TOKEN = 12
"""Bytes that a token takes while a batch is made: as an int64, and as stored in the token files before that."""


@dataclass(frozen=True)
class DataSpeed:
    """The speed of making the median batch."""

    tokens_per_second: float
    seconds: float
    """Time to make a batch."""


def measure(tokens: Tokens, *, batch_size: int, block_size: int, steps: int, order: str) -> DataSpeed:
    """Make `steps` batches in CPU memory, as training does, and measure the time. Raises UserError for sizes below
    1."""
    SEQUENCES.check("batch_size", batch_size)
    CONTEXT.check("block_size", block_size)
    SAMPLES.check("steps", steps)
    cpu, seconds = torch.device("cpu"), []
    needed, free = BYTES_PER_TOKEN * batch_size * block_size, free_memory(cpu)
    if needed > free:
        raise UserError(
            f"a batch of {batch_size}·{block_size} tokens takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free; lower --batch_size or --block_size"
        )
    for step in range(steps):
        began = time.perf_counter()
        starts = sample_starts(tokens.lengths, block_size, order, SEED, step, batch_size, batch_size)
        gather(tokens, starts, block_size, cpu)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    return DataSpeed(batch_size * block_size / median, median)
