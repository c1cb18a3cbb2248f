"""Decodes several texts at the same time; each joins and leaves the batch between two steps (Yu et al. 2022, "Orca").

The engine works on token ids. `text.py` puts text in and takes text out.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.distributed.sharding import compute_device
from gpt2.errors import UserError
from gpt2.generation.kv_cache import KVCache, KVMemory
from gpt2.generation.native import native_step
from gpt2.generation.prefixes import Prefixes, common_length
from gpt2.generation.request import LogProbs, Request, Token
from gpt2.generation.sampling import Sampling, biased, choose, penalized, uniform
from gpt2.generation.slots import Slots, Text
from gpt2.model import GPT

PREFILL_TOKENS = 512
"""Largest number of tokens of prompts in a step, so that a long prompt does not hold up texts that are decoded."""
LEAST_SHARED = 16
"""Smallest number of tokens that a prompt must share with an earlier one for their keys and values to be copied."""


@dataclass(frozen=True)
class Drawn:
    """Tokens of one step on the device, which the host has not read yet."""

    texts: list[Text]
    ids: Tensor
    """int64 (B,)"""
    is_finite: Tensor
    """A scalar: whether the logits were finite."""
    logprobs: list[tuple[Tensor, Tensor, Tensor] | None]
    """For each text that wants them: log-probability of the token, the largest ones, and their ids."""


class Engine:
    """An engine decodes the requests that are submitted to it, one token of each per step.

    On a GPU a step is read after the next one was launched, so that the device never waits for the host.
    """

    def __init__(
        self,
        model: GPT,
        *,
        slots: int = 16,
        capacity: int | None = None,
        vocab_size: int | None = None,
        prefix_bytes: int = 0,
        prefill_tokens: int = PREFILL_TOKENS,
        native: bool = True,
    ) -> None:
        """slots: texts decoded at the same time; others wait. capacity: positions of a slot, by default block_size.
        vocab_size: only ids below it are drawn. prefix_bytes: memory for the keys and values of texts that ended.
        native: decode with compiled C code where that is possible.
        """
        weights = model.transformer.wpe.weight
        self.model, self.vocab_size = model, vocab_size or model.config.vocab_size
        self.device = compute_device(weights)
        self.cache = KVMemory(model.config, slots, self.device, weights.dtype, capacity)
        self.native = native_step(model, self.cache) if native else None
        self.slots = Slots(self.cache)
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Text] = deque()
        self.prefixes = Prefixes(prefix_bytes)
        self.unread: deque[Drawn] = deque()
        self.read: list[Token] = []
        """Tokens that were read and not returned yet."""
        self.n_behind = 1 if self.device.type == "cuda" else 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to decode and nothing to report."""
        return not (self.waiting or self.slots.texts or self.unread)

    def submit(self, request: Request) -> None:
        """Add a request, to be decoded as soon as a slot is free."""
        block_size, capacity = self.model.config.block_size, self.cache.capacity
        length = len(request.prompt) + request.max_new_tokens
        assert capacity == block_size or length <= capacity, f"{length} tokens; a slot has {capacity} positions"
        tokens = list(request.prompt)
        self.waiting.append(Text(request, tokens, first=max(0, len(tokens) - block_size)))

    def cancel(self, request: Request) -> None:
        """End a request; its slot is free at once. A request that is over, or unknown, is ignored."""
        for text in [text for text in (*self.slots.texts, *self.waiting) if text.request is request]:
            self._end(text)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Compute some of the prompts, and a token of every other text; return the tokens that were read.

        Raises UserError if the model gives no finite numbers.
        """
        while self.waiting and not self.slots.is_full:
            self.slots.texts.append(self.waiting.popleft())
        self._prefill()
        self._slide()
        self._decode()
        self._read(self.n_behind if self.slots.texts else 0)
        tokens, self.read = self.read, []
        return tokens

    def run(self) -> Iterator[Token]:
        """Yield the tokens of all requests as they are decoded, until none is left."""
        while not self.is_idle:
            yield from self.step()

    # what a step does

    def _prefill(self) -> None:
        """Compute pending tokens of the texts whose prompts are not complete, at most `prefill_tokens` of them."""
        group = self._prefill_group()
        if not group:
            return
        first = self.slots.n_ready
        pending = [text.pending[: self.prefill_tokens] for text in group]
        size = max(map(len, pending))
        idx = torch.tensor([tokens + [0] * (size - len(tokens)) for tokens in pending], device=self.device)
        x = self._hidden(idx, first, [text.cached for text in group])  # (B, T, C)
        for row, (text, tokens) in enumerate(zip(group, pending, strict=True)):
            if text.request.echo and text.n_drawn == 0:
                self._echo(text, x[row, : len(tokens)])
            text.cached += len(tokens)
        if not group[0].pending:  # otherwise it is the only text of the group
            self.slots.n_ready += len(group)
            rows = torch.arange(len(group), device=self.device)
            ends = torch.tensor([len(tokens) - 1 for tokens in pending], device=self.device)
            self._draw(group, first, self.model.head(x[rows, ends]))

    def _prefill_group(self) -> list[Text]:
        """Return the texts to prefill together: the first one, and those whose pending tokens fit with it."""
        group: list[Text] = []
        size = 0
        for slot in range(self.slots.n_ready, len(self.slots.texts)):
            text = self.slots.texts[slot]
            if text.first == text.n_drawn == 0 and not text.request.echo:
                self._reuse(text, slot)
                if any(common_length(text.tokens, other.tokens) - text.cached >= LEAST_SHARED for other in group):
                    break  # it copies what they have in common after this step
            largest = max(size, len(text.pending))
            fits = all(other.cached + largest <= self.cache.capacity for other in (*group, text))
            if group and not (fits and largest * (len(group) + 1) <= self.prefill_tokens):
                break
            group.append(text)
            size = largest
        return group

    def _reuse(self, text: Text, slot: int) -> None:
        """Fill a slot with what another text has in common with this one, if that is worth it."""
        limit = min(len(text.tokens) - 1, self.cache.capacity)  # the last token is computed, for its logits
        source, shared = -1, text.cached + LEAST_SHARED - 1
        for other_slot, other in enumerate(self.slots.texts):
            if other is not text and other.first == 0:
                length = min(common_length(text.tokens, other.tokens), other.cached, limit)
                source, shared = (other_slot, length) if length > shared else (source, shared)
        stored = self.prefixes.find(text.tokens[:limit])
        if stored is not None and stored.length > shared:
            self.cache.write(slot, *stored.values())
            text.cached = stored.length
        elif source >= 0:
            self.cache.copy(source, slot, shared)
            text.cached = shared

    def _decode(self) -> None:
        """Draw the next token of every text whose prompt is complete."""
        texts = self.slots.texts[: self.slots.n_ready]
        if texts:
            ids, positions = self.slots.last[: len(texts)], [text.cached for text in texts]
            if self.native is not None and len(texts) <= self.native.max_texts:
                logits = self.native.logits(ids, positions)
            else:
                logits = self.model.head(self._hidden(ids[:, None], 0, positions)[:, -1])
            for text in texts:
                text.cached += 1
            self._draw(texts, 0, logits)

    def _hidden(self, idx: Tensor, first: int, starts: list[int]) -> Tensor:
        """Return hidden states (B, T, C) of tokens (B, T) in consecutive slots, and keep their keys and values."""
        window = KVCache(self.cache, first, starts, idx.size(1))
        return self.model.hidden(idx, window.mask, window, window.positions)

    def _draw(self, texts: list[Text], first: int, logits: Tensor) -> None:
        """Draw the next token of texts in consecutive slots from logits (B, V)."""
        logits = logits[:, : self.vocab_size].float()
        is_finite = logits.amax().isfinite()
        noise = [uniform(text.request.seed, text.n_drawn) for text in texts]
        u = torch.tensor(noise, dtype=torch.float64, device=self.device)
        ids = torch.empty(len(texts), dtype=torch.int64, device=self.device)
        alike: dict[Sampling, list[int]] = {}
        for row, text in enumerate(texts):
            alike.setdefault(text.request.sampling, []).append(row)
        for sampling, rows in alike.items():
            some = slice(None) if len(alike) == 1 else rows
            adjusted = self._adjusted(logits[some], [texts[row] for row in rows])
            ids[some] = choose(adjusted, sampling, u[some])
        logprobs = [self._logprobs(text.request, logits[row], ids[row]) for row, text in enumerate(texts)]
        self.slots.last[first : first + len(texts)] = ids
        for text, drawn in zip(texts, ids, strict=True):
            text.n_drawn += 1
            if text.counts is not None and text.seen is not None:
                text.counts[drawn] += 1
                text.seen[drawn] = True
        self.unread.append(Drawn(list(texts), ids, is_finite, logprobs))
        for text in texts:
            if text.n_drawn == text.request.max_new_tokens:
                self._leave(text)

    def _adjusted(self, logits: Tensor, texts: list[Text]) -> Tensor:
        """Return logits (B, V) with bias and penalties of texts that are sampled in the same way."""
        sampling = texts[0].request.sampling
        logits = biased(logits, sampling)
        if not sampling.counts_tokens:
            return logits
        for text in texts:
            if text.counts is None or text.seen is None:
                prompt = torch.tensor([i for i in text.request.prompt if i < self.vocab_size], device=self.device)
                text.counts = torch.zeros(self.vocab_size, device=self.device)
                text.seen = torch.zeros_like(text.counts, dtype=torch.bool).index_fill_(0, prompt, True)
        return torch.stack(
            [penalized(row, sampling, t.seen, t.counts) for row, t in zip(logits, texts, strict=True)]  # type: ignore[arg-type]
        )

    def _logprobs(self, request: Request, logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return log-probabilities that a request wants, of ids (...,) in logits (..., V); see `Drawn`."""
        if request.n_logprobs is None:
            return None
        log_probs = logits.float().log_softmax(dim=-1)
        top, top_ids = log_probs.topk(min(request.n_logprobs, log_probs.size(-1)))
        return log_probs.gather(-1, ids[..., None])[..., 0], top, top_ids

    def _echo(self, text: Text, x: Tensor) -> None:
        """Record the log-probabilities of the prompt's tokens that follow the hidden states (T, C)."""
        first = text.first + text.cached + 1
        following = text.request.prompt[first : first + len(x)]
        if following and text.request.n_logprobs is not None:
            logits = self.model.head(x[: len(following)])[:, : self.vocab_size]
            found = self._logprobs(text.request, logits, torch.tensor(following, device=self.device))
            assert found is not None
            text.prompt_logprobs += map(_on_host, *found)

    # the ends of windows and texts

    def _slide(self) -> None:
        """Move the window of every text that has filled it; the new window is computed like a prompt."""
        block_size = self.model.config.block_size
        full = [text for text in self.slots.texts[: self.slots.n_ready] if text.cached == block_size]
        if full:
            self._read(0)  # the windows need all tokens
        for text in full:
            if not text.is_over:
                kept = max(1, block_size // 2) if text.request.reanchor else block_size
                text.first = len(text.tokens) - kept
                self.slots.unready(text)

    def _end(self, text: Text) -> None:
        """Forget a text, and free its slot if it has one."""
        text.is_over = True
        if text in self.slots.texts:
            self._leave(text)
        elif text in self.waiting:
            self.waiting.remove(text)

    def _leave(self, text: Text) -> None:
        """Free the slot of a text; its keys and values are kept for prompts that begin in the same way."""
        if text.first == 0:
            slot, length = self.slots.texts.index(text), min(text.cached, len(text.tokens))
            self.prefixes.add(text.tokens[:length], lambda: self.cache.read(slot, length))
        self.slots.leave(text)

    # reading

    def _read(self, n_behind: int) -> None:
        """Read the tokens of all steps but the last `n_behind`."""
        while len(self.unread) > n_behind:
            drawn = self.unread.popleft()
            if not drawn.is_finite.item():
                raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
            for text, token_id, logprobs in zip(drawn.texts, drawn.ids.tolist(), drawn.logprobs, strict=True):
                if not text.is_over:  # it ended one step before, which was not known yet
                    self.read.append(self._token(text, token_id, None if logprobs is None else _on_host(*logprobs)))

    def _token(self, text: Text, token_id: int, logprobs: LogProbs | None) -> Token:
        """Add a token to its text, and end the text if it was the last one."""
        request, index = text.request, len(text.tokens) - len(text.request.prompt)
        text.tokens.append(token_id)
        ending = None
        if token_id in request.ends:
            ending = "stop"
        elif index + 1 == request.max_new_tokens:
            ending = "length"
        if ending:
            self._end(text)
        echo = tuple(text.prompt_logprobs) if index == 0 and request.echo else None
        return Token(request, index, token_id, ending, logprobs, echo)


def _on_host(chosen: Tensor, top: Tensor, top_ids: Tensor) -> LogProbs:
    return LogProbs(float(chosen), tuple(zip(top_ids.tolist(), top.tolist(), strict=True)))


def complete(
    model: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, seeds: Sequence[int] = ()
) -> list[list[int]]:
    """Return the `max_new_tokens` tokens that follow each prompt of token ids, or none for 0.

    seeds: one for each prompt. Raises UserError if the model gives no finite numbers.
    """
    if not max_new_tokens:
        return [[] for _ in prompts]
    pairs = zip(prompts, seeds or [0] * len(prompts), strict=True)
    requests = [Request(prompt, max_new_tokens, sampling, seed) for prompt, seed in pairs]
    engine = Engine(model, slots=max(1, len(requests)), capacity=max(map(len, prompts), default=0) + max_new_tokens)
    new: dict[int, list[int]] = {id(request): [] for request in requests}
    for request in requests:
        engine.submit(request)
    for token in engine.run():
        new[id(token.request)].append(token.id)
    return list(new.values())
