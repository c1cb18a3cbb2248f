"""An HTTP server that only this machine reaches, and that cannot be used to exhaust the process it runs in."""

import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any, NamedTuple

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
"""Host names that a request may have: any other name that leads to this server belongs to another site."""
MOST_CONNECTIONS = 16
"""Number of connections open at a time; a further one is closed at once. Each takes a descriptor and a thread."""
MOST_SECONDS = 10.0
"""Seconds for a request to arrive, and again for its answer to be sent."""
MOST_BYTES = 1 << 15
"""Bytes of a request: a larger limit would let a few clients take much memory."""
END_OF_HEAD = re.compile(rb"\n\r?\n")
NOTHING_ALLOWED = "default-src 'none'"


class Answer(NamedTuple):
    """Holds the answer to requests for one path."""

    make: Callable[[], str]
    """Returns the HTML."""
    policy: str = NOTHING_ALLOWED
    """The Content-Security-Policy of the answer."""


class LocalServer(ThreadingHTTPServer):
    """Answers GET requests for the paths of `answers`, each in a thread. An error in one request disturbs no other.

    port: 0 is any free one. Raises OSError or OverflowError where the port cannot be had.
    """

    def __init__(self, port: int, answers: Mapping[str, Answer]) -> None:
        self.free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__((HOST, port), partial(Handler, answers))

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; where that fails, as without free file descriptors, wait before the next attempt."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection where there are too many."""
        if not self.free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self.free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let another connection in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: standard error belongs to the run, and the page shows that it got no answer."""


class Handler(BaseHTTPRequestHandler):
    """Handles one request. The base class refuses every method but GET."""

    default_request_version = "HTTP/1.0"  # so that a request without a version gets headers too
    policy = NOTHING_ALLOWED

    def __init__(self, answers: Mapping[str, Answer], *connection: Any) -> None:
        self.answers = answers
        super().__init__(*connection)

    def setup(self) -> None:
        """Start the time limit of the request."""
        super().setup()
        self.timer = self.cut_later()

    def handle(self) -> None:
        """Receive a request and answer it, unless it has too many bytes."""
        head = self.receive()
        self.rfile.close()
        self.rfile = BytesIO(head)
        if len(head) > MOST_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(431)
        else:
            self.handle_one_request()

    def receive(self) -> bytes:
        """Return what the client sends up to the empty line after its headers, or a little more than MOST_BYTES."""
        head = bytearray()
        while len(head) <= MOST_BYTES and (received := self.connection.recv(4096)):
            head += received
            if END_OF_HEAD.search(head, max(0, len(head) - len(received) - 3)):
                break
        return bytes(head)

    def finish(self) -> None:
        """Stop the time limit, and end the connection."""
        self.timer.cancel()
        super().finish()

    def cut_later(self) -> threading.Timer:
        """Cut the connection after MOST_SECONDS, even if its other end keeps it busy; returns the timer."""

        def cut() -> None:
            with suppress(OSError):  # it was closed meanwhile
                self.connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(MOST_SECONDS, cut)
        timer.daemon = True
        timer.start()
        return timer

    def do_GET(self) -> None:
        """Send a page, or an error where there is none."""
        host = self.headers.get("Host", "")
        if (host.rpartition(":")[0] or host) not in HOSTS:  # a browser omits the default port
            return self.send_error(403)
        if (answer := self.answers.get(self.path)) is None:
            return self.send_error(404)
        self.timer.cancel()  # the time limit is for the client, not for making the page
        content = answer.make().encode()
        self.timer = self.cut_later()
        self.policy = answer.policy
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        """Add headers to every answer, also to errors, that forbid a browser all that the page does not need."""
        self.send_header("Content-Security-Policy", f"{self.policy}; frame-ancestors 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: standard error belongs to the run."""
