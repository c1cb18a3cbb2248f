"""A server for the load generator, whose answers are known."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from gpt2.bench.http_client import address_of
from gpt2.bench.serve import LoadGenerator, ServerSpeed
from gpt2.bench.serve_load import Load, ranges

Respond = Callable[["Fake", dict[str, Any], asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "over", "some", "hill")


class Fake:
    """A server whose answers are given by a function. Without a `respond`, each token is a word after another."""

    def __init__(self, respond: Respond | None = None) -> None:
        self.respond = respond or Fake.answer
        self.address = address_of("http://x")
        self.bodies: list[dict[str, Any]] = []
        """Bodies of the completions, the first of which is the one that tries the server."""
        self.requests: list[bytes] = []
        """The heads of all requests."""
        self.n_open = self.most_open = self.n_left = 0
        self.has_usage = True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the request of a connection."""
        self.n_open += 1
        self.most_open = max(self.most_open, self.n_open)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            if head.startswith(b"GET /v1/models "):
                await send_json(writer, 200, {"object": "list", "data": [{"id": "first"}, {"id": "second"}]})
            else:
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                await self.respond(self, self.bodies[-1], writer)
            writer.close()
        except ConnectionError:
            self.n_left += 1
        finally:
            self.n_open -= 1

    async def answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Answer with as many words as are asked for."""
        writer.write(HEAD)
        for _ in range(body["max_tokens"]):
            await send_event(writer, {"choices": [{"text": " word"}]})
        await send_event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        if self.has_usage and body.get("stream_options"):
            await send_event(writer, {"choices": [], "usage": usage(body, body["max_tokens"])})
        await send(writer, b"data: [DONE]\n\n")
        await send(writer, b"")


def usage(body: dict[str, Any], n_new: int) -> dict[str, int]:
    """Two tokens for each word of a prompt."""
    prompt = body["prompt"]
    n_prompt = 2 * len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


async def send(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(content), content))
    await writer.drain()
    await asyncio.sleep(0)


async def send_event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    await send(writer, f"data: {json.dumps(event)}\n\n".encode())


async def send_json(writer: asyncio.StreamWriter, status: int, value: Any) -> None:
    content = json.dumps(value).encode()
    writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content))
    await writer.drain()


@asynccontextmanager
async def listening(fake: Fake) -> AsyncIterator[Fake]:
    server = await asyncio.start_server(fake.handle, "127.0.0.1", 0)
    fake.address = address_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/")
    try:
        yield fake
    finally:
        server.close()


def measured(fake: Fake, progress: list[tuple[int, int, int]] | None = None, **settings: Any) -> ServerSpeed:
    """Measure a server with a load, by default of ten requests of two clients."""

    async def run() -> ServerSpeed:
        async with listening(fake), asyncio.timeout(60):
            load = {"lengths": ranges((4, 20), (2, 9)), "concurrency": 2, "requests": 10} | settings
            if "rate" in settings:
                del load["concurrency"]
            if "seconds" in settings:
                del load["requests"]
            report = [] if progress is None else progress
            return await LoadGenerator(Load(fake.address, **load), lambda *given: report.append(given)).run()

    return asyncio.run(run())
