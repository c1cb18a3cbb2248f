"""How fast batches are made."""

import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.data.batches import gather, sample_starts
from gpt2.data.shards import Tokens
from gpt2.errors import UserError


@dataclass(frozen=True)
class DataSpeed:
    """Of the median batch."""

    tokens_per_second: float
    seconds: float


def measure(tokens: Tokens, *, batch_size: int, block_size: int, steps: int, order: str) -> DataSpeed:
    """Make `steps` batches in the CPU's memory, as training does. Raises UserError for sizes below 1."""
    for name, value in (("batch_size", batch_size), ("block_size", block_size), ("steps", steps)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    cpu, seconds = torch.device("cpu"), []
    for step in range(steps):
        began = time.perf_counter()
        starts = sample_starts(tokens.lengths, block_size, order, 1337, step, batch_size, batch_size)
        gather(tokens, starts, block_size, cpu)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    return DataSpeed(batch_size * block_size / median, median)
