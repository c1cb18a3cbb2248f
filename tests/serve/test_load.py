"""Clients that leave, read slowly, send nonsense, or are too many."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serve.conftest import Running, SlowEngine, running

from gpt2.errors import UserError
from gpt2.serve import run

ENDLESS = {"logit_bias": {"256": -100}}
"""Bans end-of-text, so that a text has all of its tokens."""


def connect(one: Running) -> socket.socket:
    host, port = one.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def send(one: Running, **fields: object) -> socket.socket:
    """Send a completion request and return its connection, without reading the answer."""
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 120} | ENDLESS | fields).encode()
    connection = connect(one)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots(stream: bool) -> None:
    with running(engine=SlowEngine, slots=2) as one:
        connections = [send(one, stream=stream, n=2), send(one, stream=stream)]
        assert one.becomes(lambda: len(one.served.decoder.engine.slots.texts) == 2)
        n_decoded = len(one.served.decoder.streams)
        assert n_decoded == 3
        for connection in connections:
            connection.close()
        assert one.becomes(lambda: one.is_empty, seconds=0.4), "120 steps take 0.6 s"
        assert one.post(max_tokens=2).status_code == 200
    assert sum("cancelled" in line for line in one.lines) == 2


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    with running(engine=SlowEngine, slots=1, queue=2) as one:
        connections = [send(one) for _ in range(3)]
        assert one.becomes(lambda: len(one.served.decoder.streams) == 3)
        answer = one.post(prompt="x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert len(one.served.decoder.streams) == 3
        for connection in connections:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert one.post(prompt="x").status_code == 200


def test_a_full_queue_counts_choices() -> None:
    with running(engine=SlowEngine, slots=1, queue=3) as one:
        connection = send(one, n=3)
        assert one.becomes(lambda: len(one.served.decoder.streams) == 3)
        message = one.post(prompt="x", n=2).json()["error"]["message"]
        assert message.startswith("the request asks for 2 choices; 3 of at most 4 are generated or wait already; try")
        connection.close()


def test_a_request_that_takes_too_long_ends_with_an_error() -> None:
    with running(engine=SlowEngine, seconds=0.15) as one:
        answer = one.post(max_tokens=100, **ENDLESS)
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
        with httpx.stream(
            "POST",
            f"{one.address}/v1/completions",
            json={"model": "tiny", "max_tokens": 100, "stream": True} | ENDLESS,
        ) as stream:
            events = [line for line in stream.iter_lines() if line]
        assert json.loads(events[-2][6:])["error"]["code"] == "timeout" and events[-1] == "data: [DONE]"
        assert len(events) > 3
        assert one.becomes(lambda: one.is_empty)


def test_a_slow_reader_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing is cut at last, and its text does not wait for it."""
    monkeypatch.setattr(run, "WRITE_SECONDS", 0.2)
    with running(block_size=2048, slots=4) as one:
        slow = connect(one)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(
            {"model": "tiny", "max_tokens": 2000, "stream": True, "n": 4, "logprobs": 100} | ENDLESS
        ).encode()
        slow.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        assert one.becomes(lambda: len(one.served.decoder.streams) == 4)
        assert one.post(max_tokens=50).status_code == 200
        assert one.becomes(lambda: one.is_empty), "its slots are not free"
        assert one.becomes(lambda: not one.server.server_state.connections), "its connection stays"


NONSENSE = [
    b"\x00\xff\x00",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxxx",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /v1/models/%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


def test_nonsense_gets_an_error_and_the_server_goes_on() -> None:
    with running() as one:
        for content in NONSENSE:
            with connect(one) as connection:
                connection.sendall(content)
                answer = connection.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 4"), (content, answer)
        assert one.post(max_tokens=2).status_code == 200


def test_half_requests_and_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEAD_SECONDS", 0.3)
    with running() as one:
        idle = [connect(one) for _ in range(100)]
        half, kept = connect(one), connect(one)
        half.sendall(b"GET /health HTTP/1.1\r\nHost:")
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'"ok"}'):
            answer += kept.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /hea")
        assert one.post(max_tokens=2).status_code == 200
        for connection in (*idle, half, kept):
            assert connection.recv(4096) == b""


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_answered_and_not_logged(
    protocol: str, tiny: Running, caplog: pytest.LogCaptureFixture
) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABk"}
    answer = httpx.post(f"{tiny.address}/v1/completions", json={"max_tokens": 2}, headers=offer)
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 2
    assert not caplog.records


def test_there_is_a_limit_of_connections() -> None:
    with running(connections=5) as one:
        connections = [connect(one) for _ in range(5)]
        assert one.becomes(lambda: len(one.server.server_state.connections) == 5)
        with pytest.raises((ConnectionError, httpx.HTTPError)), connect(one) as further:
            further.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            raise ConnectionError if further.recv(100) == b"" else AssertionError("it was answered")
        connections.pop().close()
        assert one.becomes(lambda: len(one.server.server_state.connections) == 4)
        assert httpx.get(f"{one.address}/health").status_code == 200


def test_answers_are_sent_at_once(tiny: Running) -> None:
    """Without TCP_NODELAY, every second answer on a connection waits for the client's delayed acknowledgement."""
    with connect(tiny):
        assert tiny.becomes(lambda: bool(tiny.server.server_state.connections))
        sockets = [one.transport.get_extra_info("socket") for one in list(tiny.server.server_state.connections)]
        assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets)


class FailingEngine(SlowEngine):
    """An engine that fails once, after some steps."""

    count = 0

    def step(self) -> list[object]:
        FailingEngine.count += 1
        self.fails = FailingEngine.count in (5, 15)
        return super().step()

    def _slide(self) -> None:
        if not self.fails:
            return super()._slide()
        if FailingEngine.count == 5:
            raise UserError("the logits are not finite")
        raise RuntimeError("out of memory")


def test_an_error_of_the_engine_ends_the_requests_and_not_the_server() -> None:
    with running(engine=FailingEngine) as one:
        first, second, third = (one.post(max_tokens=20, **ENDLESS) for _ in range(3))
        assert (first.status_code, first.json()["error"]["message"]) == (500, "the logits are not finite")
        assert second.status_code == 500 and "out of memory" in second.json()["error"]["message"]
        assert third.status_code == 200
        assert "the logits are not finite" in one.lines


def test_running_requests_end_in_time_when_the_server_stops() -> None:
    """A request that needs less than the grace period is completed, and a longer one gets an error event."""

    class SlowerEngine(SlowEngine):
        seconds = 0.05

    with running(engine=SlowerEngine, grace=2.0) as one, ThreadPoolExecutor(2) as pool:
        short = pool.submit(one.post, max_tokens=8)  # 0.4 s, and the long one 6 s
        long = send(one, stream=True)
        assert one.becomes(lambda: len(one.served.decoder.streams) == 2)
        idle = connect(one)
        one.server.should_exit = True
        assert short.result().status_code == 200
        text = b""
        while part := long.recv(1 << 16):
            text += part
        assert b'"code":"server_stops"' in text and text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert idle.recv(10) == b""
        with pytest.raises(OSError):
            connect(one)
