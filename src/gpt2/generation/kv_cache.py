"""Keeps the keys and values of earlier positions, so that tokens can be generated one at a time."""

import torch
from torch import Tensor

from gpt2.model import GPTConfig


class KVCache:
    """Holds keys and values, (n_layer, B, nh, block_size, hs) each, of which the first `length` positions are filled.

    `GPT.hidden` fills it and advances `length`.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, nh, T, hs) of T new positions; return those of all S, (B, nh, S, hs)."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]
