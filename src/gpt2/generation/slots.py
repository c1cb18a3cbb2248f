"""Gives the texts that are decoded together their slots of the cache."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2.generation.kv_cache import KVMemory
from gpt2.generation.request import LogProbs, Request


@dataclass(eq=False)
class Text:
    """The state of a request. Its window begins at tokens[first]; `cached` positions of it are in the cache."""

    request: Request
    tokens: list[int]
    """The prompt, and the new tokens that were read."""
    first: int = 0
    cached: int = 0
    n_drawn: int = 0
    """Number of new tokens that were drawn, of which the last may not have been read yet."""
    is_over: bool = False
    prompt_logprobs: list[LogProbs | None] = field(default_factory=lambda: [None])
    counts: Tensor | None = None
    """How often each token was drawn, (V,); only where penalties need it."""
    seen: Tensor | None = None
    """Which tokens are in the prompt or were drawn, bool (V,); only where penalties need it."""

    @property
    def pending(self) -> list[int]:
        """The tokens of the window that are not in the cache."""
        return self.tokens[self.first + self.cached :]


class Slots:
    """Holds the texts in a cache, slot by slot, without a gap.

    The first `n_ready` texts have computed prompts and are decoded; those after them have prompts to compute. So each
    step works on consecutive slots and copies nothing.
    """

    def __init__(self, cache: KVMemory) -> None:
        self.cache = cache
        self.texts: list[Text] = []
        self.n_ready = 0
        self.last = torch.zeros(cache.k.size(1), dtype=torch.int64, device=cache.k.device)
        """The token that was drawn last in each slot, on the device."""

    @property
    def is_full(self) -> bool:
        return len(self.texts) == len(self.last)

    def leave(self, text: Text) -> None:
        """Free the slot of a text. The last text that is ready and the last one that is not move up."""
        slot = self.texts.index(text)
        if slot < self.n_ready:
            self.unready(text)
            slot = self.n_ready
        self._move(len(self.texts) - 1, slot)
        self.texts.pop()

    def unready(self, text: Text) -> None:
        """Make a text that was ready one whose window is to be computed again."""
        slot = self.texts.index(text)
        self.n_ready -= 1
        self._move(self.n_ready, slot)
        self.texts[self.n_ready] = text
        text.cached = 0

    def _move(self, source: int, target: int) -> None:
        """Put the text of one slot into another."""
        if source != target:
            text = self.texts[target] = self.texts[source]
            self.cache.copy(source, target, text.cached)
            self.last[target] = self.last[source]
