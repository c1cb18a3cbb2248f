"""Sends answers to clients that may leave at any time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpt2.serve.errors import ApiError

Result = TypeVar("Result")


class ClientGone(Exception):
    """The client closed its connection."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
    """Return the result of `work`, which is cancelled when the client leaves and after some seconds.

    Raises ClientGone, and ApiError where the time is over.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone
        raise ApiError(408, f"the request took longer than {seconds:g} s; ask for fewer tokens", code="timeout")
    finally:
        for one in (task, gone):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of server-sent events, each a JSON object, then `[DONE]` as in OpenAI's API.

    An error after the first event becomes an event itself, and ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any] | str], seconds: float) -> None:
        """events: objects, or what is JSON text already. seconds: time after which the stream ends with an error."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.events, self.seconds = events, seconds
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await unless_gone(receive, self._send(send), self.seconds)
        except ClientGone:
            return
        except ApiError as error:
            await send(_event(error.body()))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.events):  # pyrefly: ignore[bad-specialization]
            async for event in self.events:
                await send(_event(event))


def _event(content: dict[str, Any] | str) -> dict[str, Any]:
    data = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
