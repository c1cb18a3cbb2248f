"""The speed of a server of OpenAI's API under load: how many tokens it makes, and how long its users wait."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gpt2.bench.http_client import RequestFailed, read_events, read_json
from gpt2.bench.serve_load import Load, arrivals
from gpt2.errors import UserError

BYTES_OF_A_WORD = 8
"""A word has fewer tokens than this in nearly all texts, even where each byte is a token."""
SLOW_SECONDS = 0.1
"""Seconds that a slow client waits before each read of a few bytes."""
KINDS_OF_ERRORS = 5
"""Maximum number of different messages that are kept."""
PROGRESS_SECONDS = 0.5
BAD_REQUEST = (400, 422)
"""What servers answer to a request that they do not understand, or that does not fit the model."""
FIT = "fit the load to the model with --prompt_tokens and --new_tokens, and with --vocab_size or --text"
"""What to do where the first request does not fit the model, as random ids of GPT-2 do not fit one of characters."""

Progress = Callable[[int, int, int], None]
"""Receives how much is done, of how much, and the number of tokens that arrived."""


@dataclass
class Answer:
    """An answer, as far as it has arrived. Times are in seconds, of any clock."""

    due: float
    """When the request was to be sent."""
    n_texts: int = 0
    """Number of events with text."""
    usage: dict[str, Any] = field(default_factory=dict)
    first: float = 0.0
    last: float = 0.0
    end: float = 0.0

    def receive(self, event: dict[str, Any], now: float) -> bool:
        """Add an event; returns whether it has text."""
        self.usage = event.get("usage") or self.usage
        choices = event.get("choices")
        if not choices or not choices[0].get("text"):
            return False
        self.first = now if self.n_texts == 0 else self.first
        self.last = now
        self.n_texts += 1
        return True

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens that the server reports, or else of events with text."""
        return self.usage.get("completion_tokens") or self.n_texts


class Percentiles(NamedTuple):
    """Three percentiles of times in seconds, interpolated linearly between the values around them."""

    p50: float
    p95: float
    p99: float


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return the percentiles of values; None without values."""
    return Percentiles(*np.percentile(values, [50, 95, 99]).tolist()) if values else None


@dataclass(frozen=True)
class ServerSpeed:
    """The figures of a measurement. Requests whose client reads slowly or cancels count, but their times do not."""

    model: str
    done: int
    cancelled: int
    failed: int
    errors: dict[str, int]
    """The first different messages, with how often each of them came."""
    seconds: float
    """Time from the first request until the end of the last answer."""
    prompt_tokens: int | None
    """Tokens of the prompts that were answered completely; None where the server does not report them."""
    new_tokens: int
    """Tokens of all answers, also of those that were cancelled or failed."""
    tokens_per_second: float
    requests_per_second: float
    """Complete answers per second."""
    first_token: Percentiles | None
    """Seconds from when a request was due until its first token."""
    per_token: Percentiles | None
    """Seconds from a token to the next one: means of answers."""
    whole: Percentiles | None
    """Seconds from when a request was due until the end of its answer."""
    client_cores: float
    """Processor time of this process per second. Near 1, it limits what can be measured."""


class LoadGenerator:
    """Sends the requests of a load, and collects what becomes of them."""

    def __init__(self, load: Load, progress: Progress) -> None:
        self.load, self.progress = load, progress
        self.model = load.model or ""
        self.has_usage = True
        self.tokens_per_word = 1.0
        self.n_sent = self.n_tokens = self.n_cancelled = 0
        self.done: list[Answer] = []
        self.timed: list[Answer] = []
        self.errors: Counter[str] = Counter()

    async def run(self) -> ServerSpeed:
        """Send all requests and return what was measured. Raises UserError where the server answers none."""
        try:
            await self._prepare()
        except RequestFailed as error:
            hint = "" if error.status not in BAD_REQUEST else f"; {FIT}"
            raise UserError(f"{self.load.address.url} cannot be measured: {error}{hint}") from None
        self.n_tokens = 0
        self.began, used = time.perf_counter(), time.process_time()
        reporting = asyncio.create_task(self._report_often())
        try:
            await (self._send_at_rate(self.load.rate) if self.load.rate else self._send_in_turn())
        finally:
            reporting.cancel()
        seconds = time.perf_counter() - self.began
        self._report()
        return self._summary(seconds, time.process_time() - used)

    async def _prepare(self) -> None:
        """Find out the model's name, whether the server counts tokens, and how many a word has. Raises RequestFailed.

        The request for that also shows whether the server answers at all.
        """
        address, load = self.load.address, self.load
        if not self.model:
            listed = await read_json(address, "/models")
            try:
                self.model = str(listed["data"][0]["id"])
            except (TypeError, KeyError, IndexError):
                raise RequestFailed("it lists no model; name one with --model") from None
        n_words = max(1, load.lengths.longest // BYTES_OF_A_WORD)
        prompt = self._prompt(random.Random(f"{load.seed}/first"), n_words)
        async with asyncio.timeout(load.timeout):
            try:
                answer = await self._receive(self._content(prompt, 1, 0), Answer(0.0))
            except RequestFailed as error:
                if error.status not in BAD_REQUEST:
                    raise
                self.has_usage = False  # it may not know the field stream_options
                answer = await self._receive(self._content(prompt, 1, 0), Answer(0.0))
        self.has_usage = "prompt_tokens" in answer.usage
        if self.has_usage:
            self.tokens_per_word = max(1, answer.usage["prompt_tokens"]) / n_words

    def _prompt(self, rng: random.Random, n_words: int) -> str | list[int]:
        """Return a prompt of words that follow each other in the text, or of token ids."""
        if not self.load.words:
            return [rng.randrange(self.load.vocab_size) for _ in range(n_words)]
        words = self.load.words
        first = rng.randrange(len(words))
        return " ".join(words[(first + i) % len(words)] for i in range(n_words))

    def _content(self, prompt: str | list[int], n_new: int, number: int) -> dict[str, Any]:
        """Return the body of a request."""
        counting = {"stream_options": {"include_usage": True}} if self.has_usage else {}
        sampling = {"temperature": self.load.temperature} | ({"seed": number} if self.load.temperature else {})
        settings = {"max_tokens": n_new, "stream": True}
        return {"model": self.model, "prompt": prompt} | settings | sampling | counting

    async def _receive(self, content: dict[str, Any], answer: Answer, most: int = 0, pause: float = 0.0) -> Answer:
        """Send a request, add what arrives to its answer, and return it. Raises RequestFailed.

        most: number of texts after which the connection is closed; 0 for no limit. pause: see `ask`.
        """
        stream = read_events(self.load.address, "/completions", content, pause)
        async with aclosing(stream):  # pyrefly: ignore[bad-specialization]
            async for event in stream:
                if answer.receive(event, time.perf_counter()):
                    self.n_tokens += 1
                    if answer.n_texts == most:
                        break
        answer.end = time.perf_counter()
        return answer

    async def _send(self, number: int, due: float) -> None:
        """Send request `number`, and record what becomes of it."""
        rng = random.Random(f"{self.load.seed}/{number}")
        n_prompt, n_new = self.load.lengths.draw(rng)
        n_words = max(1, round(n_prompt / self.tokens_per_word))
        content = self._content(self._prompt(rng, n_words), n_new, number)
        is_cancelled, is_slow = rng.random() < self.load.cancel, rng.random() < self.load.slow
        most = rng.randint(1, n_new) if is_cancelled else 0
        answer = Answer(due)
        self.n_sent += 1
        try:
            async with asyncio.timeout(self.load.timeout):
                await self._receive(content, answer, most, SLOW_SECONDS if is_slow else 0.0)
        except RequestFailed as error:
            self.errors[str(error)] += 1
        except TimeoutError:
            self.errors[f"the answer took longer than {self.load.timeout:g} s"] += 1
        else:
            if is_cancelled and answer.n_texts == most:
                self.n_cancelled += 1
                return
            self.done.append(answer)
            self.n_tokens += answer.n_tokens - answer.n_texts
            if not is_slow:
                self.timed.append(answer)

    async def _send_at_rate(self, rate: float) -> None:
        """Send the requests of a Poisson process."""
        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(arrivals(rate, self.load.seed)):
                if number == self.load.requests or (self.load.seconds is not None and at >= self.load.seconds):
                    break
                due = self.began + at
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self._send(number, due))

    async def _send_in_turn(self) -> None:
        """Send the requests of clients that wait for each answer."""

        async def client() -> None:
            while self.n_sent != self.load.requests:
                now = time.perf_counter()
                if self.load.seconds is not None and now - self.began >= self.load.seconds:
                    break
                await self._send(self.n_sent, now)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.load.concurrency or 0):
                group.create_task(client())

    async def _report_often(self) -> None:
        """Report the progress now and then."""
        while True:
            self._report()
            await asyncio.sleep(PROGRESS_SECONDS)

    def _report(self) -> None:
        """Report how many requests have ended, or how much of the time has passed, in milliseconds."""
        if self.load.seconds is None:
            done, total = len(self.done) + self.n_cancelled + self.errors.total(), self.load.requests or 0
        else:
            passed = min(time.perf_counter() - self.began, self.load.seconds)
            done, total = round(1000 * passed), round(1000 * self.load.seconds)
        self.progress(done, total, self.n_tokens)

    def _summary(self, seconds: float, used: float) -> ServerSpeed:
        """Return what was measured in some seconds, with `used` seconds of processor time."""
        with_text = [answer for answer in self.timed if answer.n_texts]
        several = [answer for answer in with_text if answer.n_tokens > 1]
        counts = [answer.usage.get("prompt_tokens") for answer in self.done]
        return ServerSpeed(
            model=self.model,
            done=len(self.done),
            cancelled=self.n_cancelled,
            failed=self.errors.total(),
            errors=dict(list(self.errors.items())[:KINDS_OF_ERRORS]),
            seconds=seconds,
            prompt_tokens=sum(count or 0 for count in counts) if self.has_usage else None,
            new_tokens=self.n_tokens,
            tokens_per_second=self.n_tokens / seconds,
            requests_per_second=len(self.done) / seconds,
            first_token=percentiles([answer.first - answer.due for answer in with_text]),
            per_token=percentiles([(answer.last - answer.first) / (answer.n_tokens - 1) for answer in several]),
            whole=percentiles([answer.end - answer.due for answer in self.timed]),
            client_cores=used / seconds,
        )


def measure(load: Load, progress: Progress) -> ServerSpeed:
    """Send a load to a server and return what was measured. Raises UserError where the server cannot be measured."""
    return asyncio.run(LoadGenerator(load, progress).run())
