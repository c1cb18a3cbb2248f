"""Keeps the keys and values of earlier positions, so that tokens can be generated one at a time."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2.model import GPTConfig


class KVMemory:
    """Holds keys and values of several sequences, (n_layer, slots, nh, capacity, hs) each; a slot is one sequence.

    The engine knows how many positions of a slot are filled; the rest is finite, because a weight of 0 must hide it.
    """

    def __init__(
        self, config: GPTConfig, slots: int, device: torch.device, dtype: torch.dtype, capacity: int | None = None
    ) -> None:
        self.capacity = min(capacity or config.block_size, config.block_size)
        shape = (config.n_layer, slots, config.n_head, self.capacity, config.n_embd // config.n_head)
        self.k, self.v = zeros(shape, device, dtype), zeros(shape, device, dtype)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for memory in (self.k, self.v):
            memory[:, target, :, :length] = memory[:, source, :, :length]

    def read(self, slot: int, length: int) -> tuple[Tensor, Tensor]:
        """Return copies of the first `length` keys and values of a slot, (n_layer, nh, length, hs) each."""
        return self.k[:, slot, :, :length].clone(), self.v[:, slot, :, :length].clone()

    def write(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Fill the first positions of a slot with keys and values, (n_layer, nh, length, hs) each."""
        self.k[:, slot, :, : k.size(2)], self.v[:, slot, :, : v.size(2)] = k, v


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros. On a CPU their memory is provided when it is first used; `torch.zeros` would use it at once."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class KVCache:
    """A view of slots first … first + B - 1 of a memory, for a model that computes T tokens in each of them.

    `positions`, int64 (B, T), are those of the new tokens, and `mask`, bool (B, 1, T, S), says which of the first S
    positions each of them attends to; None where attention is causal or sees all S positions.
    """

    def __init__(self, memory: KVMemory, first: int, starts: Sequence[int], size: int) -> None:
        """starts: number of filled positions in each of the B slots. size: T."""
        self.k = memory.k[:, first : first + len(starts)]
        self.v = memory.v[:, first : first + len(starts)]
        self.start, self.end = min(starts), max(starts) + size
        self.is_even = self.start == max(starts)
        device = memory.k.device
        self.positions = torch.tensor(starts, device=device)[:, None] + torch.arange(size, device=device)
        self.slots = torch.arange(len(starts), device=device)[:, None]  # (B, 1)
        self.mask: Tensor | None = None
        if not self.is_even or size not in (1, self.end):
            self.mask = (torch.arange(self.end, device=device) <= self.positions[:, :, None])[:, None]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, nh, T, hs) of the new tokens; return those of all S, (B, nh, S, hs)."""
        keys, values = self.k[layer], self.v[layer]  # (B, nh, capacity, hs)
        if self.is_even:
            keys[:, :, self.start : self.end], values[:, :, self.start : self.end] = k, v
        else:
            keys[self.slots, :, self.positions] = k.transpose(1, 2)
            values[self.slots, :, self.positions] = v.transpose(1, 2)
        return keys[:, :, : self.end], values[:, :, : self.end]
