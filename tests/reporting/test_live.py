import json
import random
import threading
import urllib.request
from pathlib import Path

import pytest
from fetching import get
from logs import long_run, write_log

from gpt2.errors import UserError
from gpt2.reporting.live import LiveReport
from gpt2.runlog import records
from gpt2.runlog.curves import Follower
from gpt2.runlog.records import read_log
from gpt2.serve.live import served


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
        assert get(address, method="POST")[0] == 405
        assert get(address, origin=address.rstrip("/"))[0] == 200
        assert get(address, origin="https://a.example")[0] == 403
        assert get(address, origin="null")[0] == 403
        assert urllib.request.urlopen(address).headers["Cache-Control"] == "no-store"


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with served(tmp_path, {}, 0) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be served: Address already in use"):
            served(tmp_path, {}, port).__enter__()
    with pytest.raises(UserError, match="0-65535"):
        served(tmp_path, {}, 70_000).__enter__()


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
