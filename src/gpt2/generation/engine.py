"""Decodes several texts at the same time; each joins and leaves the batch between two steps (Yu et al. 2022, "Orca").

The engine works on token ids. `text.py` puts text in and takes text out.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2.distributed.sharding import compute_device
from gpt2.generation.kv_cache import KVMemory
from gpt2.generation.native import kv_dtype, native_step
from gpt2.generation.next_tokens import Drawn, draw_next
from gpt2.generation.prefixes import Prefixes
from gpt2.generation.request import LogProbs, Request, Token
from gpt2.generation.sampling import log_probs
from gpt2.generation.slots import Slots, Text
from gpt2.generation.steps import Chunk, Step, TorchStep
from gpt2.generation.transfer import send
from gpt2.model import GPT

PREFILL_TOKENS = 512
"""Largest number of tokens of prompts in a step, so that prompts do not hold up texts that are decoded."""
CHUNK = 32
"""Prompts share multiples of this number of positions on a CPU, and a step computes no fewer tokens of a long prompt.
With fewer, reading the matrices would take as long as computing."""
DEVICE_CHUNK = 256
"""The same on other devices, which take almost the same time for fewer."""


class Engine:
    """An engine decodes the requests that are submitted to it, one token of each per step.

    The text of a request, and its log-probabilities to the last bit, depend on the request alone: not on the others,
    on what was decoded before, or on `slots`, `prefill_tokens` and `prefix_bytes`. The compiled step of `native.py`
    computes each token as it does alone, whatever else a step computes. Where PyTorch computes the steps instead
    (other devices than a CPU, other layers, no C compiler), prompts are computed alone, on a fixed grid of positions,
    but its products round differently for another number of texts that are decoded. Then the last bits of
    log-probabilities can differ, and so can a text in which two tokens are almost equally likely.

    On a GPU a step is read after the next one was launched, so that the device never waits for the host, and steps of
    the same shape are replayed as a CUDA graph.
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
        step_seconds: float | None = None,
        native: bool = True,
        guess: bool = True,
    ) -> None:
        """slots: texts decoded at the same time; others wait. capacity: positions of a slot, by default block_size.
        vocab_size: only ids below it are drawn. prefix_bytes: memory for the keys and values of earlier prompts.
        prefill_tokens: maximum number of tokens of prompts in a step; at least a chunk is computed. step_seconds:
        compute as few tokens of prompts as a step of this time has room for. native: compute with compiled C code
        where that is possible. guess: let such a step compute what a text may repeat, too.
        """
        self.model, self.vocab_size = model, vocab_size or model.config.vocab_size
        self.device = compute_device(model.transformer.wpe.weight)
        self.cache = KVMemory(model.config, slots, self.device, kv_dtype(model, native), capacity)
        self.chunk = CHUNK if self.device.type == "cpu" else DEVICE_CHUNK
        self.native = native_step(model, self.cache) if native else None
        self.compute: Step = self.native or TorchStep(model, self.cache, self.chunk)
        self.can_guess = guess and self.native is not None
        self.slots = Slots(self.cache)
        self.prefill_tokens = max(prefill_tokens, self.chunk)
        self.step_seconds, self.seconds_per_token = step_seconds, 0.0
        self.waiting: deque[Text] = deque()
        self.prefixes = Prefixes(prefix_bytes, self.chunk)
        self.unread: deque[Drawn] = deque()
        """Tokens that were drawn, step by step, and not read from the device yet."""
        self.read: list[Token] = []
        """Tokens that were read and not returned yet."""
        self.n_steps = 0
        """Number of steps that computed something."""
        self.n_behind = 1 if self.device.type == "cuda" else 0
        """Number of steps that stay unread while texts are decoded."""

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
        """Add a request, to be decoded as soon as a slot is free. Raises the errors of `Request.check_ids`."""
        request.check_ids(self.model.config.vocab_size, self.vocab_size)
        block_size, capacity = self.model.config.block_size, self.cache.capacity
        length = len(request.prompt) + request.max_new_tokens
        assert capacity == block_size or length <= capacity, f"{length} tokens; a slot has {capacity} positions"
        self.waiting.append(Text(request, list(request.prompt), first=max(0, len(request.prompt) - block_size)))

    def cancel(self, request: Request) -> None:
        """End a request; its slot is free at once. A request that is over, or unknown, is ignored."""
        for text in [text for text in (*self.slots.texts, *self.waiting) if text.request is request]:
            self._end(text)

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Compute a token of every text, and some of the prompts; return the tokens that were read.

        Raises UserError if the model gives no finite numbers. After an exception the engine holds no requests and
        nothing that was computed, and can be used again.
        """
        try:
            while self.waiting and not self.slots.is_full:
                self.slots.join(self.waiting.popleft())
            self._slide()
            self._compute()
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

    def _compute(self) -> None:
        """Compute the last token of every text that is ready, and chunks of prompts; draw what follows them."""
        texts = self.slots.texts[: self.slots.n_ready]
        guessed = self.slots.guess() if self.can_guess and not self.unread else []
        starts = [] if guessed else [text.cached for text in texts]
        prompts = self._prompts()
        if not (texts or prompts):
            return
        self.n_steps += 1
        chunks = [*guessed, *(work for _, work in prompts if isinstance(work, Chunk))]
        began = time.perf_counter()
        decoded, *of_chunks = self._logits(starts, chunks)
        if (n_tokens := len(starts) + sum(len(chunk.tokens) for chunk in chunks)) >= self.chunk:
            self.seconds_per_token = (time.perf_counter() - began) / n_tokens
        checked, of_chunks = of_chunks[: len(guessed)], of_chunks[len(guessed) :]
        logits = [decoded, *(rows[:1] for rows in checked)]
        for slot, text in enumerate(texts):
            text.cached += len(guessed[slot].tokens) if guessed else 1
        for text, work in prompts:
            if isinstance(work, Text):
                row = self._copy_prompt(work, text)
            else:
                after = of_chunks.pop(0)
                row = after[-1]
                if work.wants_all:
                    self._echo(text, after)
                text.cached += len(work.tokens)
                if text.n_drawn == 0 and not text.pending:
                    text.prompt_logits = row.clone()
            if not text.pending:
                texts.append(text)
                logits.append(row[None])
        if texts:
            self._draw(texts, torch.cat(logits) if prompts or guessed else decoded)
        for text, chunk, rows in zip(texts, guessed, checked, strict=False):
            self._check(text, chunk.tokens[1:], rows[1:])

    def _check(self, text: Text, guess: Sequence[int], logits: Tensor) -> None:
        """Draw more tokens of a text while its guesses are right, from logits (n, V) after each; drop the rest."""
        n_right = 0
        self._read(0)
        while n_right < len(guess) and text.tokens[-1] == guess[n_right] and not text.is_over:
            self._draw([text], logits[n_right : n_right + 1])
            self._read(0)
            n_right += 1
        text.cached -= len(guess) - n_right
        text.guesses.learn(n_right, len(guess))

    def _logits(self, starts: list[int], chunks: list[Chunk]) -> list[Tensor]:
        """Return the logits (n, V) of the texts that are decoded, and those that each chunk wants."""
        if not (starts or chunks):
            return [torch.empty(0, self.vocab_size, device=self.device)]
        logits = self.compute.logits(self.slots.last[: len(starts)], starts, chunks)
        if logits.size(-1) > self.vocab_size or logits.dtype != torch.float32:
            logits = logits[:, : self.vocab_size].float()
        return list(logits.split([len(starts), *(chunk.n_wanted for chunk in chunks)])) if chunks else [logits]

    @property
    def _room(self) -> int:
        """Largest number of tokens of prompts that the next step computes."""
        if self.step_seconds is None:
            return self.prefill_tokens
        if not self.seconds_per_token:  # until a step was measured
            return self.chunk
        fitting = int(self.step_seconds / self.seconds_per_token) - self.slots.n_ready
        return max(self.chunk, min(fitting, self.prefill_tokens))

    def _prompts(self) -> list[tuple[Text, Chunk | Text]]:
        """Return the texts whose windows this step computes, each with its chunk, or with a text that has its prompt.

        Those that will be complete become ready. The chunks have at most `_room` tokens in sum, and end where other
        prompts can share them. A text whose prompt begins like that of an earlier one waits until it can copy what
        this step computes.
        """
        found: list[tuple[Text, Chunk | Text]] = []
        complete: list[Text] = []
        beginnings: set[tuple[int, ...]] = set()
        room = self._room
        for text in self.slots.unready:
            if text.n_drawn == 0 and (source := self.slots.same_prompt(text, complete)) is not None:
                self.slots.ready(text)
                found.append((text, source))
                continue
            self._reuse(text)
            pending, start = text.pending, text.cached
            ends = [*range(start + self.chunk, start + len(pending), self.chunk), start + len(pending)]
            shares = text.first == 0 and not text.request.echo
            if shares and tuple(text.tokens[: ends[0]]) in beginnings:
                continue
            fitting = [end for end in ends if end - start <= room]
            if not fitting:
                break
            tokens = pending[: fitting[-1] - start]
            room -= len(tokens)
            is_complete = len(tokens) == len(pending)
            slot = self.slots.ready(text) if is_complete else self.slots.texts.index(text)
            wants_all = text.request.echo and text.request.n_logprobs is not None and text.n_drawn == 0
            found.append((text, Chunk(slot, start, tokens, wants_all)))
            if not is_complete:
                break
            if text.n_drawn == 0:
                complete.append(text)
            if text.first == 0:
                beginnings.update(tuple(text.tokens[:end]) for end in fitting)
        return found

    def _copy_prompt(self, source: Text, text: Text) -> Tensor:
        """Copy what was computed for the same prompt of another text; return the logits (V,) after it."""
        assert source.prompt_logits is not None
        text.cached += len(text.pending)
        self.cache.copy(self.slots.texts.index(source), self.slots.texts.index(text), text.cached)
        text.prompt_logits, text.prompt_logprobs = source.prompt_logits, list(source.prompt_logprobs)
        return source.prompt_logits

    def _reuse(self, text: Text) -> None:
        """Fill a slot with the complete chunks that the prompt shares with others, as many as there are.

        The last token is always computed, for its logits, and so are all tokens of a prompt that is echoed.
        """
        if text.first or text.n_drawn or text.request.echo:
            return
        slot, prompt = self.slots.texts.index(text), text.prompt[:-1]
        source, shared = self.slots.longest_shared(prompt, self.chunk)
        stored = self.prefixes.find(prompt)
        if len(stored) * self.chunk > max(shared, text.cached):
            for k, v in stored[text.cached // self.chunk :]:
                self.cache.write(slot, text.cached, k, v)
                text.cached += self.chunk
        elif shared > text.cached:
            self.cache.copy(source, slot, shared)
            text.cached = shared

    def _draw(self, texts: list[Text], logits: Tensor) -> None:
        """Draw the next token of texts in consecutive slots from logits (B, V)."""
        drawn = draw_next(texts, logits)
        first = self.slots.texts.index(texts[0])
        self.slots.last[first : first + len(texts)] = drawn.ids
        self.unread.append(drawn)
        for text in texts:
            if text.n_drawn == text.request.max_new_tokens:
                self._leave(text)

    def _echo(self, text: Text, logits: Tensor) -> None:
        """Record the log-probabilities of the prompt's tokens, from the logits (T, V) before each of them."""
        first = text.first + text.cached + 1
        following = text.request.prompt[first : first + len(logits)]
        if following and text.request.n_logprobs is not None:
            ids = send(torch.tensor(following), self.device)
            found = log_probs(logits[: len(following)], ids, text.request.n_logprobs)
            text.prompt_logprobs += map(LogProbs.read, *found)

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
                self.slots.recompute(text)

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
            for text, token_id, logprobs in self.unread.popleft().read():
                if not text.is_over:  # it ended one step before, which was not known yet
                    self.read.append(self._token(text, token_id, logprobs))

    def _token(self, text: Text, token_id: int, logprobs: LogProbs | None) -> Token:
        """Add a token to its text, and end the text if it was the last one."""
        request, index = text.request, len(text.tokens) - len(text.request.prompt)
        text.tokens.append(token_id)
        is_last = index + 1 == request.max_new_tokens
        ending = "stop" if token_id in request.ends else "length" if is_last else None
        if ending:
            self._end(text)
        echo = tuple(text.prompt_logprobs) if index == 0 and request.echo else None
        return Token(request, index, token_id, ending, logprobs, echo)
