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
from gpt2.generation.prefixes import Prefixes
from gpt2.generation.request import LogProbs, Request, Token
from gpt2.generation.sampling import Sampling, biased, choose, log_probs, penalized, uniform
from gpt2.generation.slots import Slots, Text
from gpt2.model import GPT

PREFILL_TOKENS = 512
"""Largest number of tokens of prompts in a step, so that prompts do not hold up texts that are decoded."""
CHUNK = 64
"""Number of positions of a prompt that are computed together on a CPU. Fewer use it worse: the 124M model computes 64
together at two thirds of the speed of 512, and 32 at half of it. With more, prompts would share less and a step would
take longer."""
DEVICE_CHUNK = 256
"""The same on other devices, which take almost the same time for fewer."""


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

    The text of a request, and its log-probabilities to the last bit, depend on the request alone: not on the others,
    on what was decoded before, or on `slots`, `prefill_tokens` and `prefix_bytes`. For that, each prompt is computed
    alone, in chunks on a fixed grid of positions; only such chunks are shared; and the compiled step of `native.py`
    computes each row of a batch as it does alone. Where PyTorch decodes instead (other devices than a CPU, other
    layers, no C compiler), its products round differently for another number of texts. Then the last bits of
    log-probabilities can differ, and so can a text in which two tokens are almost equally likely.

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
        vocab_size: only ids below it are drawn. prefix_bytes: memory for the keys and values of earlier prompts.
        prefill_tokens: tokens of prompts in a step, rounded down to complete chunks, but at least one chunk. native:
        decode with compiled C code where that is possible.
        """
        weights = model.transformer.wpe.weight
        self.model, self.vocab_size = model, vocab_size or model.config.vocab_size
        self.device = compute_device(weights)
        self.cache = KVMemory(model.config, slots, self.device, weights.dtype, capacity)
        self.native = native_step(model, self.cache) if native else None
        self.slots = Slots(self.cache)
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Text] = deque()
        self.chunk = CHUNK if self.device.type == "cpu" else DEVICE_CHUNK
        self.prefixes = Prefixes(prefix_bytes, self.chunk)
        self.unread: deque[Drawn] = deque()
        self.read: list[Token] = []
        """Tokens that were read and not returned yet."""
        self.n_behind = 1 if self.device.type == "cuda" else 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to decode and nothing to report."""
        return not (self.waiting or self.slots.texts or self.unread)

    @property
    def n_active(self) -> int:
        """Number of slots in use."""
        return len(self.slots.texts)

    @property
    def n_waiting(self) -> int:
        """Number of requests that wait for a slot."""
        return len(self.waiting)

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

        Raises UserError if the model gives no finite numbers. After an exception the engine holds no requests and
        nothing that was computed, and can be used again.
        """
        try:
            while self.waiting and not self.slots.is_full:
                self.slots.join(self.waiting.popleft())
            self._prefill()
            self._slide()
            self._decode()
            self._read(self.n_behind if self.slots.texts else 0)
        except BaseException:
            self._forget()
            raise
        tokens, self.read = self.read, []
        return tokens

    def run(self) -> Iterator[Token]:
        """Yield the tokens of all requests as they are decoded, until none is left."""
        while not self.is_idle:
            yield from self.step()

    # what a step does

    def _prefill(self) -> None:
        """Compute chunks of windows that are not complete, as many as `prefill_tokens` allows, but at least one.

        A chunk is computed alone and begins at a multiple of its size, so that its shape, and with it the rounding of
        its keys and values, depends on nothing but the text. The last chunk of a window may be smaller, but counts as
        a complete one, because much of its time is that of reading the model.
        """
        n_chunks = max(1, self.prefill_tokens // self.chunk)
        while n_chunks and (text := self.slots.next_unready()) is not None:
            if text.cached == text.n_drawn == 0:
                if self._copy_prompt(text):
                    continue
                self._reuse(text)
            # a window that has moved shares nothing, and is computed at once
            tokens = text.pending[: self.chunk] if text.first == 0 else text.pending
            n_chunks -= 1
            x = self._hidden(torch.tensor([tokens], device=self.device), self.slots.texts.index(text), [text.cached])
            if text.request.echo and text.n_drawn == 0:
                self._echo(text, x[0])
            text.cached += len(tokens)
            if not text.pending:
                logits = self.model.head(x[:, -1])  # (1, V)
                if text.n_drawn == 0:
                    text.prompt_logits = logits[0]
                self._draw([text], self.slots.ready(text), logits)

    def _copy_prompt(self, text: Text) -> bool:
        """Draw from what was computed for the same prompt of another text; return whether there is one."""
        source, slot = self.slots.same_prompt(text), self.slots.texts.index(text)
        if source is None:
            return False
        other = self.slots.texts[source]
        assert other.prompt_logits is not None
        text.cached = len(text.pending)
        self.cache.copy(source, slot, text.cached)
        text.prompt_logits, text.prompt_logprobs = other.prompt_logits, list(other.prompt_logprobs)
        self._draw([text], self.slots.ready(text), other.prompt_logits[None])
        return True

    def _reuse(self, text: Text) -> None:
        """Fill a slot with the complete chunks that the prompt shares with others, as many as there are.

        The last token is always computed, for its logits, and so are all tokens of a prompt that is echoed.
        """
        if text.first or text.request.echo:
            return
        slot, prompt = self.slots.texts.index(text), text.prompt[:-1]
        source, shared = self.slots.longest_shared(prompt, self.chunk)
        stored = self.prefixes.find(prompt)
        if len(stored) * self.chunk > shared:
            for k, v in stored:
                self.cache.write(slot, text.cached, k, v)
                text.cached += self.chunk
        else:
            self.cache.copy(source, slot, shared)
            text.cached = shared

    def _decode(self) -> None:
        """Draw the next token of every text whose prompt is complete."""
        texts = self.slots.texts[: self.slots.n_ready]
        if texts:
            ids, positions = self.slots.last[: len(texts)], [text.cached for text in texts]
            if self.native is not None:
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
        wanted = [text.request.n_logprobs for text in texts]
        logprobs = [None if n is None else log_probs(logits[row], ids[row], n) for row, n in enumerate(wanted)]
        self.slots.last[first : first + len(texts)] = ids
        for text, drawn in zip(texts, ids, strict=True):
            text.n_drawn += 1
            text.count(drawn)
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
        return torch.stack(
            [
                penalized(row, sampling, *text.counted(self.vocab_size, self.device))
                for row, text in zip(logits, texts, strict=True)
            ]
        )

    def _echo(self, text: Text, x: Tensor) -> None:
        """Record the log-probabilities of the prompt's tokens that follow the hidden states (T, C)."""
        first = text.first + text.cached + 1
        following = text.request.prompt[first : first + len(x)]
        if following and text.request.n_logprobs is not None:
            logits = self.model.head(x[: len(following)])[:, : self.vocab_size]
            ids = torch.tensor(following, device=self.device)
            text.prompt_logprobs += map(LogProbs.read, *log_probs(logits.float(), ids, text.request.n_logprobs))

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
        """Free the slot of a text; the chunks of its prompt are kept for prompts that begin in the same way."""
        if text.first == 0:
            slot = self.slots.texts.index(text)
            self.prefixes.add(text.prompt[: text.cached], lambda start, end: self.cache.read(slot, start, end))
        self.slots.leave(text)

    def _forget(self) -> None:
        """Forget all requests and everything that was computed: it may not be finite, or half of a step."""
        self.slots = Slots(self.cache)
        self.waiting.clear()
        self.unread.clear()
        self.read = []
        self.prefixes = Prefixes(self.prefixes.max_bytes, self.chunk)
        self.cache.clear()

    # reading

    def _read(self, n_behind: int) -> None:
        """Read the tokens of all steps but the last `n_behind`."""
        while len(self.unread) > n_behind:
            drawn = self.unread.popleft()
            if not drawn.is_finite.item():
                raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
            for text, token_id, logprobs in zip(drawn.texts, drawn.ids.tolist(), drawn.logprobs, strict=True):
                if not text.is_over:  # it ended one step before, which was not known yet
                    self.read.append(self._token(text, token_id, logprobs and LogProbs.read(*logprobs)))

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
