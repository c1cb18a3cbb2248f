import base64
import hashlib
import http.client
import json
import random
import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from logs import long_run, write_log

from gpt2.errors import UserError
from gpt2.reporting import local_server
from gpt2.reporting.live import LiveReport, served
from gpt2.runlog import records
from gpt2.runlog.curves import Follower
from gpt2.runlog.records import read_log


def get(address: str, path: str = "", method: str = "GET", host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=10)
    connection.request(method, f"/{path}", headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_follows_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path / "run", {}, 0) as address:
        assert address.startswith("http://127.0.0.1:")
        assert "data-live" in get(address)[1]
        assert "No evaluation yet." in get(address, "body")[1]
        write_log(tmp_path / "run", long_run(50))
        status, content = get(address, "body")
        assert status == 200
        assert "sample at 50" in content
        assert not content.startswith("<!doctype")
    with pytest.raises(OSError, match=r"refused|reset"):
        get(address)
    assert capfd.readouterr() == ("", "")


def test_a_log_is_read_on_where_it_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = write_log(tmp_path / "run", long_run(10)), [0.0]
    monkeypatch.setattr("gpt2.reporting.live.time.monotonic", lambda: now[0])
    live = LiveReport([run], {})
    first = live.body()
    now[0] = 100.0
    assert live.body() is first
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.runlog.curves.positioned", lambda *given: pytest.fail("all of it was read again"))
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps(long_run(11)[-1]) + '\n{"event": "tra')
        now[0] = 200.0
        second = live.body()
        assert second != first
        now[0] = 300.0
        assert live.body() is second
    write_log(run, long_run(20))  # another log in the same file
    now[0] = 400.0
    assert live.body() not in (first, second)


def test_what_is_read_on_is_what_is_read_at_once(tmp_path: Path) -> None:
    rng, step, path = random.Random(0), 0, tmp_path / "log.jsonl"
    path.write_text(json.dumps({"event": "start", "step": 0, "time": 0}) + "\n")
    follower = Follower(tmp_path)
    for _ in range(400):
        event = rng.choice(["train"] * 20 + ["eval", "sample", "checkpoint", "resume", "end"])
        step = max(0, step - rng.randrange(9)) if event == "resume" else step + (event == "train")
        record = {"event": event, "step": step, "time": 0, "loss": rng.random(), "val_loss": rng.random()}
        with path.open("a") as log:
            log.write(json.dumps(record) + "\n")
        if rng.random() < 0.3:
            assert follower.look()
            assert not follower.look()
            found = [{k: v for k, v in r.items() if k not in ("order", "segment")} for r in follower.thinned.records]
            assert found == read_log(path)


def test_a_long_log_is_read_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a second here, and so one at the log two."""
    ticks = iter(range(1000))
    monkeypatch.setattr("gpt2.reporting.live.time.monotonic", lambda: float(next(ticks)))
    live, contents = LiveReport([write_log(tmp_path / "run", long_run(1))], {}), []
    for step in range(2, 102):
        contents.append(live.body())
        write_log(tmp_path / "run", long_run(step))
    assert 1 < len(set(contents)) <= 5


def test_a_broken_log_is_read_to_its_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = write_log(tmp_path / "run", long_run(1)), [0.0]
    monkeypatch.setattr("gpt2.reporting.live.time.monotonic", lambda: now[0])
    (run / "log.jsonl").write_text("{broken}\n")
    live = LiveReport([run], {})
    with monkeypatch.context() as patch:
        read: list[Path] = []
        positioned = records.positioned
        patch.setattr("gpt2.runlog.curves.positioned", lambda *given: read.append(given[0]) or positioned(*given))
        for now[0] in (100.0, 200.0, 300.0):
            assert "No evaluation yet." in live.body()
        assert len(read) == 1
    write_log(run, long_run(50))
    now[0] = 400.0
    assert "sample at 50" in live.body()


def test_an_open_page_learns_how_its_run_ended(tmp_path: Path) -> None:
    run, contents = write_log(tmp_path / "run", long_run(3)), []
    with served(run, {}, 0) as address:
        assert "running</b>" in get(address, "body")[1]
        write_log(run, [*long_run(3), {"event": "end", "step": 3, "time": 1.8e9, "stopped": True}])
        asking = threading.Timer(0.5, lambda: contents.append(get(address, "body")[1]))
        asking.start()
    asking.join()
    assert "stopped</b>" in contents[0]


def test_several_runs_are_served_together(tmp_path: Path) -> None:
    runs = [write_log(tmp_path / name, long_run(3)) for name in "ab"]
    with served(runs, {}, 0, in_trainer=False) as address:
        assert get(address, "body")[1].count("broken off</b>") == 2


def test_only_this_machine_may_read_and_nobody_write(tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        port = address.rstrip("/").rpartition(":")[2]
        assert get(address, host=f"localhost:{port}")[0] == 200
        assert get(address, host=f"rebound.example:{port}")[0] == 403
        assert get(address, "log.jsonl")[0] == 404
        assert get(address, "../config.toml")[0] == 404
        assert get(address, method="POST")[0] == 501
        assert urllib.request.urlopen(address).headers["Cache-Control"] == "no-store"


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with served(tmp_path, {}, 0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be served: Address already in use"):
            served(tmp_path, {}, port).__enter__()
    with pytest.raises(UserError, match="0 to 65535"):
        served(tmp_path, {}, 70_000).__enter__()


REQUESTS = {
    "page": b"GET / HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
    "body": b"GET /body HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n",
    "no such page": b"GET /x HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
    "another host": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "another method": b"PUT / HTTP/1.1\r\nHost: localhost:1\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "nonsense": b"\x00\xff {}\r\n\r\n",
    "a version that there is not": b"GET / HTTP/9.9\r\n\r\n",
    "a long line": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: " + b"x" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(200)) + b"\r\n",
}


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


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_forbids_what_is_not_needed(name: str, tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address, connect(address) as connection:
        connection.sendall(REQUESTS[name])
        top, _, rest = read_all(connection).partition(b"\r\n\r\n")
    head, content = top.decode("latin-1"), rest.decode(errors="replace")
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert head.startswith("HTTP/1.0 200 " if name in ("page", "body") else "HTTP/1.0 ")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert policy.endswith("; frame-ancestors 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    assert len(scripts) == (name == "page")
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy


def send_nothing(connection: socket.socket) -> None: ...


def send_a_part(connection: socket.socket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\nX: ")


def send_and_close_half(connection: socket.socket) -> None:
    connection.sendall(b"GET / HT")


@pytest.mark.parametrize("begin", [send_nothing, send_a_part, send_and_close_half])
def test_connections_are_few_and_short(
    begin: Callable[[socket.socket], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[Callable[[], None]] = []

    class Timer:
        """One that goes off when the test wants it."""

        def __init__(self, seconds: float, work: Callable[[], None]) -> None:
            timers.append(work)

        def start(self) -> None: ...

        def cancel(self) -> None: ...

    monkeypatch.setattr(local_server.threading, "Timer", Timer)
    most = local_server.MOST_CONNECTIONS
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        before = threading.active_count()
        held = [connect(address) for _ in range(most)]
        for connection in held:
            begin(connection)
        while len(timers) < most:  # until all are accepted
            pass
        for _ in range(300):  # these are closed at once
            with connect(address) as further:
                assert read_all(further) == b""
        assert threading.active_count() <= before + most
        for cut in list(timers):
            cut()
        for connection in held:
            read_all(connection)
            connection.close()
        while threading.active_count() > before:
            pass
        assert get(address)[0] == 200


def test_a_connection_that_cannot_be_accepted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures, waits = socket.socket.accept, [OSError(24, "Too many open files")] * 3, []

    def failing(server: socket.socket) -> tuple:
        if failures:
            raise failures.pop()
        return accept(server)

    monkeypatch.setattr(socket.socket, "accept", failing)
    monkeypatch.setattr(local_server.time, "sleep", waits.append)
    with served(write_log(tmp_path / "run", long_run(1)), {}, 0) as address:
        assert get(address)[0] == 200
    assert waits == [0.1] * 3


@pytest.mark.parametrize(
    "head", [b"GET /" + 70_000 * b"x", b"GET / HTTP/1.1\r\n" + 9 * (b"X: " + 9000 * b"y" + b"\r\n")]
)
def test_a_request_of_many_bytes_is_refused_before_it_is_read_whole(head: bytes, tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(3)), {}, 0) as address, connect(address) as connection:
        connection.sendall(head[: local_server.MOST_BYTES + 1])  # which is where the server stops reading
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.0 431")
    assert b"frame-ancestors 'none'" in answer


def test_a_browser_may_leave_out_the_usual_port(tmp_path: Path) -> None:
    with served(write_log(tmp_path / "run", long_run(3)), {}, 0) as address:
        assert get(address, host="localhost")[0] == 200
        assert get(address, host="rebound.example")[0] == 403


def test_another_programs_log_is_followed(tmp_path: Path) -> None:
    log = tmp_path / "main.log"
    log.write_text("s:0 tel:9.125\ns:0 trl:8.5 lr:0.1 norm:1\n")
    for run in (tmp_path, log):
        followed = Follower(run)
        assert followed.look()
        assert not followed.look()
        assert [r.get("val_loss") for r in followed.thinned.records] == [9.125, None]
    with log.open("a") as file:
        file.write("s:1 tel:4.25\n")
    assert followed.look()
    assert followed.thinned.records[-1]["val_loss"] == 4.25
