"""Runs an application on uvicorn, with limits on connections and an orderly end."""

import asyncio
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from h11 import Data, EndOfMessage, RemoteProtocolError, Response
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2.errors import UserError
from gpt2.system import allow_open_files

HEAD_BYTES = 32 << 10
"""Maximum size of the headers of a request."""
HEAD_SECONDS = 10.0
"""Seconds for the headers of a request to arrive."""
WRITE_SECONDS = 60.0
"""Seconds after which a connection is cut whose client reads nothing of what waits for it."""
IDLE_SECONDS = 5
"""Seconds that a connection stays open for a further request."""
MOST_CONNECTIONS = 900
"""Number of connections open at a time; a further one is closed at once."""
AT_ONCE = 16
"""Number of connections that asyncio accepts at once; up to three times as many are open before one can be closed."""
OTHER_FILES = 100
"""Number of files that the process may need besides connections."""
WAITING = 1024
"""Number of connections that may wait to be accepted."""


class Connection(H11Protocol):
    """A connection that its client cannot keep open without using it."""

    def __init__(self, most: int, *given: Any, **named: Any) -> None:
        """most: the number of connections of the server. The others are uvicorn's."""
        super().__init__(*given, **named)
        self.most = most
        self.limits: dict[str, asyncio.TimerHandle] = {}
        """Time limits that run: for the client to send a `request`, and to read an `answer`."""

    def connection_made(self, transport: Any) -> None:
        """Start the time limit for the first request, or close the connection where there are too many."""
        super().connection_made(transport)
        # asyncio sets it only on sockets that name their protocol; without it, every second answer waits 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)  # `pause_writing` is then called whenever something waits to be read
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._cut_after(HEAD_SECONDS, "request")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time limits."""
        for what in tuple(self.limits):
            self._cut_after(None, what)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive a part of a request; its headers must be complete in time.

        The time limit also holds for the rest of a body that was answered before it was complete.
        """
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cut_after(None, "request")
        elif "request" not in self.limits:
            self._cut_after(HEAD_SECONDS, "request")

    def _should_upgrade(self) -> bool:
        """Return False: a client that offers HTTP/2, as Java's does each time, gets HTTP/1.1.

        uvicorn would do the same, and log advice about WebSockets, which this server does not have.
        """
        return False

    def pause_writing(self) -> None:
        """Start the time limit for a client to read what was sent."""
        super().pause_writing()
        self._cut_after(WRITE_SECONDS, "answer")

    def resume_writing(self) -> None:
        """End the time limit, since the client has read everything."""
        super().resume_writing()
        self._cut_after(None, "answer")

    def send_400_response(self, msg: str) -> None:
        """Answer what is not valid HTTP, with the headers that all answers of the server have."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, RemoteProtocolError) else 400
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"connection", b"close"),
        ]
        for event in (Response(status_code=status, headers=headers), Data(data=msg.encode()), EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _cut_after(self, seconds: float | None, what: str) -> None:
        """Start the time limit for something again; None ends it."""
        if what in self.limits:
            self.limits.pop(what).cancel()
        if seconds is not None:
            self.limits[what] = self.loop.call_later(seconds, self.transport.abort)


class Server(uvicorn.Server):
    """A server whose running requests have `grace` seconds when it ends; a second signal ends it at once."""

    def __init__(
        self,
        app: Starlette,
        grace: float,
        fail: Callable[[], None],
        *,
        connections: int = MOST_CONNECTIONS,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """fail: ends all requests with an error. connections: the number of them that may be open at a time, or fewer
        where the system allows fewer files. headers: those that all answers have, also to requests that are not valid
        HTTP.
        """
        others = (
            3 * AT_ONCE + OTHER_FILES
        )  # without a file for a connection, asyncio logs thousands of lines a second
        connections = max(1, min(connections, allow_open_files(connections + others) - others))
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(Connection, connections),  # type: ignore[arg-type]
                ws="none",
                loop="asyncio",
                backlog=AT_ONCE,
                headers=list(headers),
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=HEAD_BYTES,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=max(1, round(grace + WRITE_SECONDS)),
            )
        )
        self.grace, self.fail = grace, fail

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(WAITING)  # asyncio lets only as many wait as it accepts at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new requests, and wait for those that run."""
        timer = asyncio.get_running_loop().call_later(self.grace, self.fail)
        await super().shutdown(sockets)
        timer.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in an orderly way at the first signal, and at once at the second one."""
        if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
            yield
            return
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        yield
        for number, handler in before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises UserError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=WAITING)
    except (OSError, OverflowError, UnicodeError) as error:
        why = str(error.strerror if isinstance(error, OSError) else error).partition(" (while attempting")[0]
        raise UserError(f"port {port} of {host} cannot be served: {why}; choose another, or 0 for any free") from None
