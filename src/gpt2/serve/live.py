"""Serves the report on runs while they go on: to this machine only, and only for reading."""

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from gpt2.reporting.live import LiveReport
from gpt2.reporting.markup import content_policy
from gpt2.serve.run import Server, listen
from gpt2.serve.web import make_app, safe_headers

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""Host names that a request may have: any other name that leads to this server belongs to another site."""
MOST_CONNECTIONS = 16
"""Number of connections open at a time. The server must leave the descriptors of the process to the training."""
END_SECONDS = 1.0
"""Seconds that requests have when the server ends; then they are cut."""


def routes(live: LiveReport) -> list[Route]:
    """Return the routes of a live report: its page, and the page's content for the page to replace."""
    return [Route("/", _answer(live.page)), Route("/body", _answer(live.body))]


def _answer(make: Callable[[], str]) -> Callable[[Request], Awaitable[HTMLResponse]]:
    """Return a handler that answers with the HTML that `make` returns, and that makes it in another thread."""

    async def answer(request: Request) -> HTMLResponse:
        return HTMLResponse(await asyncio.to_thread(make))

    return answer


@contextmanager
def served(
    runs: Path | Sequence[Path], defaults: dict[str, Any], port: int, *, in_trainer: bool = True
) -> Iterator[str]:
    """Serve the report on runs, which may not have begun yet, from a thread in the background; yields its address.

    port: 0 is any free one. in_trainer: whether this process trains the run, which is running then. Raises UserError
    where the port cannot be had.
    """
    live = LiveReport([runs] if isinstance(runs, Path) else runs, defaults, in_trainer)
    listener = listen(HOST, port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/"

    def cut() -> None:
        for connection in tuple(server.server_state.connections):
            connection.transport.abort()

    app = make_app(routes(live), hosts=HOSTS)
    # all answers have the headers, also errors
    headers = list(safe_headers(content_policy()).items())
    server = Server(app, END_SECONDS, cut, connections=MOST_CONNECTIONS, headers=headers)
    thread = threading.Thread(target=lambda: asyncio.run(_run(server, listener)), name="live report", daemon=True)
    with _silence():
        thread.start()
        try:
            yield address
            live.wait_for_last_look()
        finally:
            server.should_exit = True
            thread.join(2 * END_SECONDS)  # a page that takes longer to make ends with the process


async def _run(server: Server, listener: socket.socket) -> None:
    """Run a server. Nothing is printed about a connection that fails: standard error belongs to the run."""
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    await server.serve([listener])


@contextmanager
def _silence() -> Iterator[None]:
    """Keep uvicorn's lines from standard error, where Python would print them without any logging being set up."""
    logger = logging.getLogger("uvicorn.error")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
