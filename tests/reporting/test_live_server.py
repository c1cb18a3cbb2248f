"""The server of the live report answers what it should, and no client holds it up."""

import asyncio
import base64
import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fetching import get
from logs import long_run, write_log

from gpt2.reporting.live import LiveReport
from gpt2.serve import run as server_module
from gpt2.serve.live import MOST_CONNECTIONS, served
from gpt2.serve.run import HEAD_BYTES, HEAD_SECONDS, WRITE_SECONDS, Connection

REQUESTS = {
    "page": (200, b"GET / HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n"),
    "body": (200, b"GET /body HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n"),
    "head": (200, b"HEAD / HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n"),
    "no such page": (404, b"GET /x HTTP/1.0\r\nHost: localhost:1\r\n\r\n"),
    "a path with a way out": (404, b"GET /../config.toml HTTP/1.0\r\nHost: localhost:1\r\n\r\n"),
    "a complete address": (404, b"GET http://localhost:1/ HTTP/1.0\r\nHost: localhost:1\r\n\r\n"),
    "another host": (403, b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n"),
    "a host that begins well": (403, b"GET / HTTP/1.0\r\nHost: localhost.a.example:1\r\n\r\n"),
    "an address that is not ours": (403, b"GET / HTTP/1.0\r\nHost: [::1]:1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: a.example\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "no host in an old version": (403, b"GET / HTTP/1.0\r\n\r\n"),
    "another method": (405, b"PUT / HTTP/1.0\r\nHost: localhost:1\r\n\r\n"),
    "a body that never comes": (405, b"POST / HTTP/1.0\r\nHost: localhost:1\r\nContent-Length: 99\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "nonsense": (400, b"\x00\xff {}\r\n\r\n"),
    "another protocol": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "a long line": (431, b"GET /" + b"x" * (HEAD_BYTES - 4)),
    "a long header": (431, b"GET / HTTP/1.1\r\nHost: " + b"x" * (HEAD_BYTES - 21)),
    "many headers": (400, b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"\r\n"),
}
"""Requests, and the status of their answers. Those that are too long have a byte more than is read."""


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while piece := connection.recv(1 << 16):
            found += piece
    except ConnectionError:  # it was cut with something of ours unread
        pass
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page."""
    with served(write_log(tmp_path_factory.mktemp("runs") / "run", long_run(1)), {}, 0) as address:
        yield address


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_forbids_what_is_not_needed(
    name: str, site: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    status, request = REQUESTS[name]
    content = answer_to(request, site, status)
    assert ("<script>" in content) == (name == "page")
    assert (content == "") == (name == "head")
    assert get(site, "body")[0] == 200
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_a_page_that_fails_disturbs_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(LiveReport, "page", lambda report: 1 // 0)
    with served(tmp_path, {}, 0) as address:
        answer_to(REQUESTS["page"][1], address, 500)
        assert get(address, "body")[0] == 200
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def answer_to(request: bytes, address: str, status: int) -> str:
    """Check status, headers and scripts of the answer to a request, and return its content."""
    with connect(address) as connection:
        connection.sendall(request)
        top, _, rest = read_all(connection).partition(b"\r\n\r\n")
    head, content = top.decode("latin-1"), rest.decode(errors="replace")
    headers = {name.title(): value for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:])}
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("; frame-ancestors 'none'")
    for script in re.findall(r"<script>(.*?)</script>", content, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
    return content


def send_nothing(connection: socket.socket) -> None: ...


def send_a_part(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\nX: ")


def send_and_close_half(connection: socket.socket) -> None:
    connection.sendall(b"GET / HT")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Limits:
    """Collects the time limits of connections, which pass when the test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: dict[tuple[Connection, str], float] = {}
        self.n_started = self.n_bytes = 0
        receive = Connection.data_received

        def counted(connection: Connection, data: bytes) -> None:
            receive(connection, data)
            self.n_bytes += len(data)

        monkeypatch.setattr(Connection, "data_received", counted)
        monkeypatch.setattr(Connection, "_cut_after", lambda *given: self.set(*given))

    def set(self, connection: Connection, seconds: float | None, what: str) -> None:
        self.running.pop((connection, what), None)
        connection.limits.pop(what, None)
        if seconds is not None:
            connection.limits[what] = self.running[connection, what] = seconds  # type: ignore[assignment]
            self.n_started += 1

    def seconds(self) -> list[float]:
        return list(self.running.values())

    def wait_for(self, seconds: list[float]) -> None:
        wait_until(lambda: self.seconds() == seconds)

    def settle(self) -> int:
        """Number of open descriptors when no connection is left."""
        self.wait_for([])
        counts = [-1]
        while len(set(counts[-5:])) > 1 or len(counts) < 5:
            counts.append(len(list(Path("/dev/fd").iterdir())))
            time.sleep(0.02)
        return counts[-1]

    def pass_(self) -> None:
        for connection, _ in tuple(self.running):
            connection.loop.call_soon_threadsafe(connection.transport.abort)


@pytest.mark.parametrize("begin", [send_nothing, send_a_part])
def test_connections_are_few_and_short(
    begin: Callable[[socket.socket], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(monkeypatch)
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        assert get(address)[0] == 200
        before, opened = threading.active_count(), limits.settle()
        held = [connect(address) for _ in range(MOST_CONNECTIONS)]
        for connection in held:
            begin(connection)
        limits.wait_for([HEAD_SECONDS] * MOST_CONNECTIONS)
        for _ in range(300):  # these are closed at once
            with connect(address) as further:
                assert read_all(further) == b""
        assert threading.active_count() == before
        limits.pass_()
        for connection in held:
            assert read_all(connection) == b""
            connection.close()
        assert limits.settle() == opened
        assert get(address)[0] == 200


def test_half_a_request_ends_with_its_connection(tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        for begin in (send_and_close_half, send_a_part, send_nothing):
            for _ in range(MOST_CONNECTIONS + 1):
                with connect(address) as connection:
                    begin(connection)
                    connection.shutdown(socket.SHUT_WR)
                    assert read_all(connection) == b""


def test_the_time_limits_of_a_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request must arrive in time, and so must what remains of it after its answer, which must be read in time."""
    limits = Limits(monkeypatch)
    page = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        with connect(address) as client:
            limits.wait_for([HEAD_SECONDS])
            connection, _ = next(iter(limits.running))
            assert connection.transport.get_write_buffer_limits() == (0, 0)  # what is not read at once has a limit
            client.sendall(page + b"\r\n")
            assert client.recv(9) == b"HTTP/1.1 "
            assert limits.seconds() == []
            while not client.recv(1 << 16).endswith(b"</html>\n"):
                pass
            client.sendall(page)  # only a part of the next request
            limits.wait_for([HEAD_SECONDS])
            client.sendall(b"Content-Length: 100\r\n\r\n")
            limits.wait_for([])
            while not client.recv(1 << 16).endswith(b"</html>\n"):
                pass
            client.sendall(b"x")  # of the body that nobody waits for any more
            limits.wait_for([HEAD_SECONDS])
            n_started, n_bytes = limits.n_started, limits.n_bytes
            for part in range(1, 20):
                client.sendall(b"x")
                wait_until(lambda part=part: limits.n_bytes == n_bytes + part)
            assert limits.n_started == n_started  # the time goes on
            limits.pass_()
            assert read_all(client) == b""
        limits.wait_for([])
    monkeypatch.setattr(LiveReport, "page", lambda report: "x" * 50_000_000)
    with served(tmp_path, {}, 0) as address, connect(address) as client:
        client.sendall(page + b"\r\n")
        limits.wait_for([WRITE_SECONDS])
        client.sendall(page)  # which does not end the time limit
        limits.wait_for([WRITE_SECONDS, HEAD_SECONDS])
        limits.pass_()
        assert len(read_all(client)) < 50_000_000
        limits.wait_for([])


def test_what_was_read_ends_the_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(monkeypatch)
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 10**6)
    monkeypatch.setattr(LiveReport, "page", lambda report: "x" * 20_000_000)
    with served(tmp_path, {}, 0) as address, connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        limits.wait_for([WRITE_SECONDS])
        read = 0
        while read < 20_000_000:
            read += len(client.recv(1 << 20))
        limits.wait_for([])
        assert get(address, "body")[0] == 200


def test_a_slow_page_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(LiveReport, "page", lambda report: str(go_on.wait(60)))
    with served(tmp_path, {}, 0) as address, connect(address) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert get(address, "body")[0] == 200
        assert get(address, "missing")[0] == 404
        go_on.set()
        assert read_all(slow).endswith(b"\r\n\r\nTrue")


def test_the_end_waits_for_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither idle connections, nor half requests, nor an answer that is not read keep the server from ending."""
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 1e6)
    monkeypatch.setattr(server_module, "WRITE_SECONDS", 1e6)
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 10**6)
    monkeypatch.setattr(LiveReport, "page", lambda report: "x" * 50_000_000)
    others = threading.enumerate()
    with ExitStack() as stack:
        with served(tmp_path, {}, 0) as address:
            thread = next(t for t in threading.enumerate() if t.name == "live report" and t not in others)
            idle, half, unread, kept = (stack.enter_context(connect(address)) for _ in range(4))
            send_a_part(half)
            unread.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            kept.sendall(b"GET /body HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert kept.recv(9) == b"HTTP/1.1 "
            assert unread.recv(9) == b"HTTP/1.1 "
        thread.join(30)
        assert not thread.is_alive()
        for connection in (idle, half, kept):
            read_all(connection)
        assert len(read_all(unread)) < 50_000_000


def test_a_connection_that_cannot_be_accepted_ends_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    accept, failures = socket.socket.accept, [OSError(24, "Too many open files")] * 3

    def failing(server: socket.socket) -> tuple:
        if failures:
            raise failures.pop()
        return accept(server)

    monkeypatch.setattr(socket.socket, "accept", failing)
    monkeypatch.setattr(asyncio.constants, "ACCEPT_RETRY_DELAY", 0.01)
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        assert get(address)[0] == 200
    assert failures == []
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


def test_a_browser_may_leave_out_the_usual_port(tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(3)), {}, 0) as address:
        assert get(address, host="localhost")[0] == 200
        assert get(address, host="rebound.example")[0] == 403
