"""Where the wall time of a run goes."""

import time
from pathlib import Path

import pytest

from gpt2.runlog.records import read_log
from gpt2.training.loop import train
from gpt2.training.timing import Ledger


def test_all_time_is_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 103.0, 110.0, 110.5, 112.0])
    monkeypatch.setattr("gpt2.training.timing.time.perf_counter", lambda: next(clock))
    ledger = Ledger()
    ledger.mark()  # 1 second of other things
    assert ledger.mark("evaluation") == 2
    assert ledger.steps([{"data": 1.0, "forward": 2.0}, {"data": 0.5, "forward": 3.0}]) == 7
    assert ledger.mark("evaluation") == 0.5
    ledger.move("waiting", 0.25)
    assert ledger.totals() == {
        "evaluation": 2.5, "data": 1.5, "forward": 5.0, "waiting": 0.25, "other": 1 + 0.5 + 1.5 - 0.25,
    }  # fmt: skip


@pytest.mark.parametrize("log_interval", [1, 10])
def test_what_a_run_books_is_its_wall_time(tiny, tmp_path: Path, log_interval: int) -> None:
    settings = {"max_iters": 200, "eval_interval": 50, "sample_interval": 50, "sample_tokens": 20}
    began = time.perf_counter()
    train(tiny(**settings, log_interval=log_interval), imports=7.0)
    wall = time.perf_counter() - began
    records = read_log(tmp_path / "run")
    booked = records[-1]["seconds"]
    assert booked["imports"] == records[0]["seconds"]["imports"] == 7.0
    assert {"data", "model", "peak", "compile", "optimizer"} <= records[0]["seconds"].keys()
    assert sum(booked.values()) == pytest.approx(7.0 + wall, abs=0.02 * wall)
    assert booked["other"] < 0.1 * wall  # a fiftieth, on a machine that does nothing else

    def total(event: str, part: str | None = None) -> float:
        found = [r["seconds"] for r in records if r["event"] == event]
        return sum(s if part is None else s[part] for s in found)

    for part in ("data", "forward", "backward", "reduce", "optimizer"):
        begun = records[0]["seconds"].get(part, 0.0)  # data and optimizer are set up before
        assert booked[part] - begun == pytest.approx(total("train", part), abs=0.01)
    assert booked["evaluation"] == pytest.approx(total("eval"), abs=0.001)
    assert booked["sampling"] == pytest.approx(total("sample"), abs=0.001)
    assert booked["checkpoints"] >= total("checkpoint") - 0.01
    # the split of the updates is what their speed is measured from
    seconds = sum(64 / r["tokens_per_second"] for r in records if r["event"] == "train")
    split = sum(sum(r["seconds"].values()) for r in records if r["event"] == "train")
    assert 0.9 * seconds < split <= 1.001 * seconds


def test_every_update_has_the_peak_memory(tiny, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux to compare with")
    train(tiny(max_iters=3))
    peaks = [r["memory"] for r in read_log(tmp_path / "run") if r["event"] == "train"]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_now = int(status["VmHWM"].split()[0]) * 1024
    assert peaks == sorted(peaks)
    assert 0.9 * peak_now < peaks[-1] < 10 * peak_now  # Linux counts what there was before exec
