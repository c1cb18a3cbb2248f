"""Gives the texts that are decoded together their slots of the cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2.generation.guesses import Guesses
from gpt2.generation.kv_cache import KVMemory
from gpt2.generation.request import LogProbs, Request
from gpt2.generation.steps import Chunk
from gpt2.generation.transfer import send

GUESSED_TOKENS = 8
"""Largest number of tokens of a step that computes guesses: about what is computed while the matrices are read."""


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
    turn: int = 0
    """Texts whose windows are to be computed take turns in this order."""
    prompt_logits: Tensor | None = None
    """Logits (V,) after the prompt, for a text with the same prompt, while the prompt is in the cache."""
    prompt_logprobs: list[LogProbs | None] = field(default_factory=lambda: [None])
    guesses: Guesses = field(default_factory=Guesses)
    counts: Tensor | None = None
    """How often each token was drawn, (V,); only where penalties need it."""
    seen: Tensor | None = None
    """Which tokens are in the prompt or were drawn, bool (V,); only where penalties need it."""

    @property
    def pending(self) -> list[int]:
        """The tokens of the window that are not in the cache."""
        return self.tokens[self.first + self.cached :]

    @property
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""
        return self.tokens[: len(self.request.prompt)]

    def counted(self, vocab_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `seen` and `counts`, which are kept from the first call on."""
        if self.seen is None or self.counts is None:
            prompt = send(torch.tensor([i for i in self.request.prompt if i < vocab_size]), device)
            self.counts = torch.zeros(vocab_size, device=device)
            self.seen = torch.zeros_like(self.counts, dtype=torch.bool).index_fill_(0, prompt, True)
        return self.seen, self.counts

    def count(self, ids: Tensor, row: int) -> None:
        """Count the token of a row of those that were drawn, int64 (B,) on the device, if penalties need it."""
        if self.seen is not None and self.counts is not None:
            drawn = ids[row : row + 1]
            self.counts.index_add_(0, drawn, torch.ones_like(drawn, dtype=self.counts.dtype))
            self.seen.index_fill_(0, drawn, True)


class Slots:
    """Holds the texts in a cache, slot by slot, without a gap.

    The first `n_ready` texts have computed prompts and are decoded; those after them have prompts to compute. So each
    step works on consecutive slots and copies nothing.
    """

    def __init__(self, cache: KVMemory) -> None:
        self.cache = cache
        self.texts: list[Text] = []
        self.n_ready = 0
        self.n_turns = 0
        self.last = torch.zeros(cache.k.size(1), dtype=torch.int64, device=cache.k.device)
        """The token that was drawn last in each slot, on the device."""

    @property
    def is_full(self) -> bool:
        return len(self.texts) == len(self.last)

    def join(self, text: Text) -> None:
        """Give a text a free slot. Its turn comes after those of the texts that wait for theirs."""
        self.texts.append(text)
        self._queue(text)

    @property
    def unready(self) -> list[Text]:
        """The texts whose windows are to be computed, in the order of their turns."""
        return sorted(self.texts[self.n_ready :], key=lambda text: text.turn)

    def same_prompt(self, text: Text, soon: Sequence[Text]) -> Text | None:
        """Return a text whose prompt is that of this one and is computed, or `soon` will be, or None.

        If the prompt of this text is echoed, the other one was echoed in the same way.
        """
        wanted = text.request
        for other in self.texts:
            has_echo = other.request.echo and other.request.n_logprobs == wanted.n_logprobs
            is_computed = other.prompt_logits is not None or other in soon
            if is_computed and other.prompt == text.prompt and (has_echo or not wanted.echo):
                return other
        return None

    def longest_shared(self, prompt: list[int], chunk: int) -> tuple[int, int]:
        """Return the slot of the text that shares most chunks with a prompt, and the number of tokens in them.

        Only complete chunks of other prompts count, because what was decoded is rounded differently.
        """
        slot, shared = 0, 0
        for other_slot, other in enumerate(self.texts):
            known = other.prompt[: other.cached] if other.first == 0 else []
            while prompt[: (end := shared + chunk)] == known[:end] and len(known) >= end:
                slot, shared = other_slot, end
        return slot, shared

    def ready(self, text: Text) -> int:
        """Move a text to those that are decoded, and return its slot."""
        slot, target = self.texts.index(text), self.n_ready
        if slot != target:
            other = self.texts[target]
            self.cache.swap(slot, target, text.cached, other.cached)
            self.texts[slot], self.texts[target] = other, text
        self.n_ready += 1
        return target

    def leave(self, text: Text) -> None:
        """Free the slot of a text. The last text that is ready and the last one that is not move up."""
        slot = self.texts.index(text)
        if slot < self.n_ready:
            self.recompute(text)
            slot = self.n_ready
        self._move(len(self.texts) - 1, slot)
        self.texts.pop()

    def guess(self) -> list[Chunk]:
        """Return the last token of each ready text with guesses of those after it, or nothing if there are none."""
        texts, room = self.texts[: self.n_ready], GUESSED_TOKENS - self.n_ready
        guesses: list[list[int]] = []
        for text in texts if room > 0 else []:
            left = min(text.request.max_new_tokens - text.n_drawn, self.cache.capacity - text.cached)
            guesses.append(text.guesses.guess(text.tokens, min(room, left - 1)))
            room -= len(guesses[-1])
        if not any(guesses):
            return []
        return [
            Chunk(slot, text.cached, [text.tokens[-1], *guess], wants_all=True)
            for slot, (text, guess) in enumerate(zip(texts, guesses, strict=True))
        ]

    def recompute(self, text: Text) -> None:
        """Make a text that was ready one whose window is to be computed again."""
        slot = self.texts.index(text)
        self.n_ready -= 1
        self._move(self.n_ready, slot)
        self.texts[self.n_ready] = text
        text.cached, text.prompt_logits = 0, None
        self._queue(text)

    def _queue(self, text: Text) -> None:
        text.turn = self.n_turns
        self.n_turns += 1

    def _move(self, source: int, target: int) -> None:
        """Put the text of one slot into another."""
        if source != target:
            text = self.texts[target] = self.texts[source]
            self.cache.copy(source, target, text.cached)
            self.last[target] = self.last[source]
