import http.client
import urllib.request
from pathlib import Path

import pytest
from logs import long_run, write_log

from gpt2.errors import UserError
from gpt2.runlog.live import LiveReport, served


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


def test_a_log_is_not_read_again_until_it_has_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now = write_log(tmp_path / "run", long_run(10)), [0.0]
    monkeypatch.setattr("gpt2.runlog.live.time.monotonic", lambda: now[0])
    live = LiveReport(run, {})
    first = live.body()
    monkeypatch.setattr("gpt2.runlog.live.report_on", lambda run: pytest.fail("it was read again"))
    now[0] = 100.0
    assert live.body() is first
    monkeypatch.undo()
    write_log(run, long_run(20))
    assert live.body() != first


def test_a_long_log_is_read_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock takes a second here, and so one at the log two."""
    ticks = iter(range(1000))
    monkeypatch.setattr("gpt2.runlog.live.time.monotonic", lambda: float(next(ticks)))
    live, contents = LiveReport(write_log(tmp_path / "run", long_run(1)), {}), []
    for step in range(2, 102):
        contents.append(live.body())
        write_log(tmp_path / "run", long_run(step))
    assert 1 < len(set(contents)) <= 5


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
