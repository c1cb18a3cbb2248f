"""Keeps the keys and values of earlier positions, so that tokens can be generated one at a time."""

import math

import torch
from torch import Tensor

from gpt2 import system
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

    def swap(self, slot: int, other: int, length: int, other_length: int) -> None:
        """Exchange two slots, in which the first `length` and `other_length` positions are filled."""
        for memory in (self.k, self.v) if length or other_length else ():
            kept = memory[:, other, :, :other_length].clone()
            memory[:, other, :, :length] = memory[:, slot, :, :length]
            memory[:, slot, :, :other_length] = kept

    def read(self, slot: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return copies of the keys and values of positions start … end - 1, (n_layer, nh, end - start, hs) each."""
        return self.k[:, slot, :, start:end].clone(), self.v[:, slot, :, start:end].clone()

    def write(self, slot: int, start: int, k: Tensor, v: Tensor) -> None:
        """Fill the positions from `start` on with keys and values, (n_layer, nh, T, hs) each."""
        end = start + k.size(2)
        self.k[:, slot, :, start:end], self.v[:, slot, :, start:end] = k, v

    def clear(self) -> None:
        """Set everything to 0, as it was at first."""
        self.k.zero_()
        self.v.zero_()


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return zeros. On a CPU, each part of their memory is provided when it is first used.

    So a slot takes as much memory as its text needs. The zeros begin at a page, because libraries may round
    differently for another alignment.
    """
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.frombuffer(system.zeros(math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


class KVCache:
    """A view of slots first … first + B - 1 of a memory, for a model that computes T tokens in each of them.

    `positions`, int64 (B, T), are those of the new tokens, and `mask`, bool (B, 1, T, S), says which of the first S
    positions each of them attends to; None where all S are new, and attention is causal.
    """

    def __init__(self, memory: KVMemory, first: int, positions: Tensor, end: int) -> None:
        """positions: on the device of the memory. end: S, larger than all of them."""
        self.k = memory.k[:, first : first + len(positions)]
        self.v = memory.v[:, first : first + len(positions)]
        self.positions, self.end = positions, end
        self.slots = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        self.mask: Tensor | None = None
        if positions.size(1) != end:
            self.mask = (torch.arange(end, device=positions.device) <= positions[:, :, None])[:, None]

    @classmethod
    def even(cls, memory: KVMemory, first: int, rows: int, start: int, size: int) -> "KVCache":
        """Return a view of `rows` slots in each of which `start` positions are filled and `size` are new."""
        positions = torch.arange(start, start + size, device=memory.k.device)
        return cls(memory, first, positions.expand(rows, -1), start + size)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, nh, T, hs) of the new tokens; return those of all S, (B, nh, S, hs).

        They are returned in the dtype of the new ones, which is not always that of the memory.
        """
        keys, values = self.k[layer], self.v[layer]  # (B, nh, capacity, hs)
        keys[self.slots, :, self.positions] = k.transpose(1, 2).to(keys.dtype)
        values[self.slots, :, self.positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self.end].to(k.dtype), values[:, :, : self.end].to(v.dtype)
