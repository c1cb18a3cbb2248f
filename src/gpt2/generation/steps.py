"""What a step of the engine computes, and how PyTorch computes it; `native.py` does it on a CPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2.distributed.sharding import is_sharded
from gpt2.generation.graphs import Graphs
from gpt2.generation.kv_cache import KVCache, KVMemory
from gpt2.generation.transfer import send
from gpt2.model import GPT


@dataclass(frozen=True)
class Chunk:
    """A chunk is some consecutive tokens of a text, of which all earlier ones are in the cache."""

    slot: int
    start: int
    """Position of its first token in the window of the text."""
    tokens: Sequence[int]
    wants_all: bool = False
    """Whether the logits after each of its tokens are wanted, or only those after the last."""

    @property
    def n_wanted(self) -> int:
        """Number of tokens after which the logits are wanted."""
        return len(self.tokens) if self.wants_all else 1


class Step(Protocol):
    """Computes the logits of new tokens, and adds the tokens' keys and values to the cache."""

    def logits(self, last: Tensor, starts: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """Return the logits (R, V) of one more token of the first slots, followed by those that each chunk wants.

        last: int64 (n,), the tokens of slots 0 … n - 1. starts: their positions. R is n and the sum of `n_wanted`.
        """
        ...


class TorchStep:
    """Computes steps with the model itself.

    A chunk is computed alone, in pieces that begin at multiples of `size`, so that the shapes of its products, and
    with them the rounding of its keys and values, depend on nothing but the text. Decoded tokens attend to a multiple
    of `size` positions, of which those that are not filled yet get a weight of 0: so steps have few shapes, and a GPU
    can replay them.
    """

    def __init__(self, model: GPT, memory: KVMemory, size: int) -> None:
        self.model, self.memory, self.size = model, memory, size
        weights = model.transformer.wpe.weight
        self.decode = self._decode
        if weights.is_cuda and not is_sharded(weights):
            self.decode = Graphs(self._decode, memory.k.size(1), weights.device)

    def logits(self, last: Tensor, starts: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """See `Step`."""
        found = []
        if starts:
            end = min(self.memory.capacity, math.ceil((max(starts) + 1) / self.size) * self.size)
            found.append(self.decode(last, send(torch.tensor(starts), last.device), end))
        for chunk in chunks:
            pieces = [chunk.tokens[begin : begin + self.size] for begin in range(0, len(chunk.tokens), self.size)]
            for number, tokens in enumerate(pieces):
                idx = send(torch.tensor([tokens]), last.device)
                start = chunk.start + number * self.size
                x = self._hidden(idx, KVCache.even(self.memory, chunk.slot, 1, start, len(tokens)))[0]  # (T, C)
                if chunk.wants_all:
                    found.append(self.model.head(x))
                elif number == len(pieces) - 1:
                    found.append(self.model.head(x[-1:]))
        return torch.cat(found)

    def _decode(self, last: Tensor, positions: Tensor, end: int) -> Tensor:
        """Return the logits (B, V) of tokens (B,) of the first slots, which attend to the first `end` positions."""
        return self.model.head(self._hidden(last[:, None], KVCache(self.memory, 0, positions[:, None], end))[:, 0])

    def _hidden(self, idx: Tensor, window: KVCache) -> Tensor:
        """Return hidden states (B, T, C) of tokens (B, T), and keep their keys and values."""
        return self.model.hidden(idx, window.mask, window, window.positions)
