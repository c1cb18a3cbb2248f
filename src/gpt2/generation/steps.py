"""What a step of the engine computes, and how PyTorch computes it; `native.py` does it on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2.generation.kv_cache import KVCache, KVMemory
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
    with them the rounding of its keys and values, depend on nothing but the text.
    """

    def __init__(self, model: GPT, memory: KVMemory, size: int) -> None:
        self.model, self.memory, self.size = model, memory, size

    def logits(self, last: Tensor, starts: Sequence[int], chunks: Sequence[Chunk]) -> Tensor:
        """See `Step`."""
        found = [self.model.head(self._hidden(last[:, None], 0, starts)[:, 0])] if starts else []
        for chunk in chunks:
            pieces = [chunk.tokens[begin : begin + self.size] for begin in range(0, len(chunk.tokens), self.size)]
            for number, tokens in enumerate(pieces):
                idx = torch.tensor([tokens], device=last.device)
                x = self._hidden(idx, chunk.slot, [chunk.start + number * self.size])[0]  # (T, C)
                if chunk.wants_all:
                    found.append(self.model.head(x))
                elif number == len(pieces) - 1:
                    found.append(self.model.head(x[-1:]))
        return torch.cat(found)

    def _hidden(self, idx: Tensor, first: int, starts: Sequence[int]) -> Tensor:
        """Return hidden states (B, T, C) of tokens (B, T) in consecutive slots, and keep their keys and values."""
        window = KVCache(self.memory, first, starts, idx.size(1))
        return self.model.hidden(idx, window.mask, window, window.positions)
