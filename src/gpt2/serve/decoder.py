"""Runs the engine of a model in a thread of its own, for requests that arrive in an event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from gpt2.errors import Log, UserError, first_line
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request, Token
from gpt2.serve.errors import ApiError
from gpt2.spelling import counted

STEP_SECONDS = 10.0
"""Seconds that the end of a server waits for a step of the engine."""


@dataclass(eq=False)
class Stream:
    """A stream brings the tokens of some requests from the engine to the event loop, as they are decoded."""

    requests: Sequence[Request]
    close: Callable[[], None]
    """Ends the requests that are still decoded; their slots are free before the engine's next step."""
    events: "asyncio.Queue[tuple[Request, Token] | ApiError]" = field(default_factory=asyncio.Queue)
    open: set[Request] = field(default_factory=set)
    """The requests whose last token has not been yielded yet."""

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Yield the tokens of all requests in the order in which they are decoded. Raises ApiError."""
        while self.open:
            event = await self.events.get()
            if isinstance(event, ApiError):
                raise event
            request, token = event
            if request in self.open:
                if token.ending:
                    self.open.discard(request)
                yield token


class Decoder:
    """A decoder decodes requests in a thread, all together, at most `slots` of them at a time.

    Its methods are for the event loop in which `start` was called. The thread and the event loop share only what
    `changed` protects.
    """

    def __init__(self, engine: Engine, slots: int, queue: int, log: Log) -> None:
        """slots: those of the engine. queue: requests that may wait for a slot."""
        self.engine, self.slots, self.queue, self.log = engine, slots, queue, log
        self.streams: dict[Request, Stream] = {}
        """Every request that is not over, with its stream. It belongs to the event loop."""
        self.changed = threading.Condition()
        self.incoming: list[Request] = []
        self.leaving: list[Request] = []
        self.is_stopped = False
        self.seconds_per_request = 1.0
        """Running mean of the time that a request takes, from which the wait for a full queue is estimated."""

    def start(self) -> None:
        """Start the thread; its tokens go to the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.thread = threading.Thread(target=self._run, daemon=True, name="decoder")
        self.thread.start()

    def stop(self) -> None:
        """End the thread after its step, and wait for it: the process could not exit cleanly while it computes."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify()
        self.thread.join(STEP_SECONDS)

    @property
    def n_waiting(self) -> int:
        """Return the number of requests that wait for a slot."""
        return max(0, len(self.streams) - self.slots)

    @property
    def n_decoded(self) -> int:
        """Return the number of slots in use."""
        return min(len(self.streams), self.slots)

    def submit(self, requests: Sequence[Request]) -> Stream:
        """Add requests and return the stream of their tokens.

        Raises ApiError: 400 for a request that the engine refuses, and 429 where the queue is full.
        """
        try:
            for request in requests:
                request.check_ids(self.engine.model.config.vocab_size, self.engine.vocab_size)
        except UserError as error:
            raise ApiError(400, str(error)) from None
        room = self.slots + self.queue
        if len(requests) > room:
            message = f"the request asks for {len(requests)} choices; at most {room} fit into the queue"
            raise ApiError(400, message, param="n")
        if len(self.streams) + len(requests) > room:
            seconds = max(1, min(60, round(self.seconds_per_request * self.n_waiting / self.slots)))
            message = (
                f"the request asks for {counted(len(requests), 'choice')}; {len(self.streams)} of at most {room} are "
                f"generated or wait already; try again in {seconds} s"
            )
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})
        stream = Stream(requests, close=lambda: self._cancel(requests), open=set(requests))
        for request in requests:
            self.streams[request] = stream
        with self.changed:
            self.incoming += requests
            self.changed.notify()
        return stream

    def end(self, request: Request) -> None:
        """End one request; its stream yields no more of its tokens. Its slot is free before the next step."""
        if stream := self.streams.get(request):
            stream.open.discard(request)
            self._cancel([request])

    def fail(self, error: ApiError) -> None:
        """End all requests with an error."""
        for stream in set(self.streams.values()):
            stream.events.put_nowait(error)
        self._cancel(list(self.streams))

    def _cancel(self, requests: Sequence[Request]) -> None:
        still = [request for request in requests if self.streams.pop(request, None)]
        with self.changed:
            self.leaving += still
            self.changed.notify()

    def _arrived(self, tokens: Sequence[Token]) -> None:
        """Put the tokens of a step into their streams, in the event loop."""
        for token in tokens:
            if stream := self.streams.get(token.request):
                stream.events.put_nowait((token.request, token))
                if token.ending:
                    del self.streams[token.request]

    # in the thread

    def _run(self) -> None:
        began: dict[Request, float] = {}
        while True:
            with self.changed:
                self.changed.wait_for(
                    lambda: self.is_stopped or self.incoming or self.leaving or not self.engine.is_idle
                )
                if self.is_stopped:
                    return
                incoming, self.incoming = self.incoming, []
                leaving, self.leaving = self.leaving, []
            now = time.monotonic()
            for request in incoming:
                self.engine.submit(request)
                began[request] = now
            for request in leaving:
                self.engine.cancel(request)
                began.pop(request, None)
            tokens = self._step()
            for token in tokens:
                if token.ending and token.request in began:
                    took = time.monotonic() - began.pop(token.request)
                    self.seconds_per_request += 0.1 * (took - self.seconds_per_request)
            if tokens:
                self._call(self._arrived, tokens)

    def _step(self) -> list[Token]:
        """Return the tokens of a step of the engine. An error ends the requests that are decoded, and is logged."""
        try:
            return self.engine.step()
        except UserError as error:
            message = str(error)
        except Exception as error:  # whatever happens, the server goes on with the requests after it
            message = f"decoding failed ({type(error).__name__}: {first_line(error)})"
        self.log(message)
        self._call(self.fail, ApiError(500, message))
        return []

    def _call(self, function: Callable[..., None], argument: object) -> None:
        try:
            self.loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the event loop was closed meanwhile
            self.is_stopped = True
