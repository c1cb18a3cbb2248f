"""A long log in little memory: the same peaks, course and sums."""

import json
import math
import random
from pathlib import Path

import pytest

from gpt2.reporting.figures import RunReport
from gpt2.runlog import thinned
from gpt2.runlog.curves import counts, extremes, load, seconds_worked, series, smooth
from gpt2.runlog.records import read_log
from gpt2.runlog.thinned import Thinned, every_other, joined


def update(step: int, loss: float, time: float, rate: float = 100.0) -> dict:
    return {
        "event": "train", "step": step, "time": time, "loss": loss, "lr": 1 / step, "grad_norm": loss / 2,
        "tokens": 10 * step, "tokens_per_second": rate, "mfu": 0.25, "memory": step,
        "seconds": {"data": 0.25, "forward": 0.5},
    }  # fmt: skip


def long_log(path: Path, updates: int) -> None:
    rng = random.Random(1)
    with path.open("w") as log:

        def write(record: dict) -> None:
            log.write(json.dumps(record) + "\n")

        write({"event": "start", "step": 0, "time": 0.0, "tokens": 0, "device": "cpu"})
        for step in range(1, updates + 1):
            loss = 2 + 8 * math.exp(-step / 3000) + rng.gauss(0, 0.05) + (90 if step == 7777 else 0)
            write(update(step, loss, float(step), 90 + 20 * rng.random()))
            if step % 10 == 0:
                evaluation = {"train_loss": loss, "val_loss": 1.0 if step == 12_340 else loss, "seconds": 0.5}
                write({"event": "eval", "step": step, "time": step + 0.5, **evaluation})
            if step % 25 == 0:
                write({"event": "sample", "step": step, "time": step + 0.6, "text": "x" * 9000})
                write({"event": "checkpoint", "step": step, "time": step + 0.7, "seconds": 0.25})
            if step == 15_000:
                write({"event": "resume", "step": step, "time": step + 0.8, "tokens": 10 * step})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "log.jsonl"
    long_log(path, 20_000)
    return path


def test_few_records_stand_for_many(log: Path) -> None:
    records = load(log).records
    assert len(records) < 4096 + 2048 + 64 + 512 + 10
    updates = [r for r in records if r["event"] == "train"]
    assert 2000 < len(updates) <= 4096
    assert sum(counts(records, "loss")) == 20_000
    assert [r["time"] for r in records] == sorted(r["time"] for r in records)
    assert max(len(r.get("text", "")) for r in records) == 4000


def test_a_short_log_stays_as_it_is(tmp_path: Path) -> None:
    long_log(tmp_path / "log.jsonl", 300)
    found = [{k: v for k, v in r.items() if k not in ("order", "segment")} for r in load(tmp_path).records]
    expected = [r | ({"text": r["text"][:4000]} if "text" in r else {}) for r in read_log(tmp_path)]
    assert found == expected


def test_peaks_and_course_are_kept(log: Path) -> None:
    whole, thin = read_log(log), load(log).records
    for key in ("loss", "grad_norm", "tokens_per_second"):
        steps, values = series(whole, "train", key)
        few_steps, few = extremes(thin, key)
        assert (min(few), max(few)) == (min(values), max(values))
        assert set(zip(few_steps, few, strict=True)) <= set(zip(steps, values, strict=True))
        assert few_steps == sorted(few_steps)
    steps, losses = series(whole, "train", "loss")
    smoothed = dict(zip(steps, smooth(losses, 0.995), strict=True))
    few_steps, means = series(thin, "train", "loss")
    course = smooth(means, 0.995, counts(thin, "loss"))
    assert all(abs(smoothed[s] - v) < 0.05 for s, v in zip(few_steps[20:], course[20:], strict=True) if s != 7777)


def test_sums_are_exact(log: Path) -> None:
    whole, thin = (RunReport("x", records, {}) for records in (read_log(log), load(log).records))
    expected, found = dict(whole.phases), dict(thin.phases)
    assert found.pop("other") == pytest.approx(expected.pop("other"), rel=1e-3)  # a record before the resume is gone
    assert found == pytest.approx(expected, rel=1e-9)
    assert thin.seconds == pytest.approx(whole.seconds, rel=1e-4)
    assert (thin.step, thin.tokens, thin.best, thin.last) == (whole.step, whole.tokens, whole.best, whole.last)
    assert seconds_worked(thin.records)[-1] == pytest.approx(seconds_worked(whole.records)[-1], rel=1e-3)


def test_two_updates_become_one() -> None:
    """By hand: tokens over time of 10 tokens each at 50 and 100 a second is 20 in 0.3 s."""
    record = joined([update(1, 2.0, 5.0, 50.0), update(2, 6.0, 7.0, 100.0)])
    assert record["loss"] == 4.0
    assert record["extremes"]["loss"] == ((1, 2.0), (2, 6.0))
    assert record["tokens_per_second"] == pytest.approx(20 / 0.3)
    assert record["seconds"] == {"data": 0.5, "forward": 1.0}
    assert (record["step"], record["time"], record["tokens"], record["lr"], record["count"]) == (2, 7.0, 20, 0.5, 2)
    record = joined([record, update(3, 10.0, 8.0) | {"loss": None}])
    assert record["loss"] == 4.0
    assert record["extremes"]["loss"] == ((1, 2.0), (2, 6.0))


def test_updates_before_and_after_a_stop_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinned, "MOST_STEPS", 4)
    found = Thinned()
    for step in range(1, 4):
        found.add(update(step, 1.0, float(step)))
    found.add({"event": "resume", "step": 3, "time": 100.0})
    for step in range(4, 40):
        found.add(update(step, 1.0, 100.0 + step))
    assert len(found.steps) <= 6
    assert 3 in [r["step"] for r in found.steps]


def test_the_best_and_the_newest_evaluation_stay() -> None:
    records = [{"val_loss": 5.0 - (i == 7), "seconds": 1.0, "step": i} for i in range(20)]
    kept = every_other(records)
    assert [r["step"] for r in kept] == [0, 2, 4, 6, 7, 8, 10, 12, 14, 16, 18, 19]
    assert sum(r["seconds"] for r in kept) == 20.0


def test_smoothing_counts_what_a_value_stands_for() -> None:
    each = smooth([1.0, 1.0, 1.0, 5.0, 5.0], 0.9)
    assert smooth([1.0, 5.0], 0.9, [3, 2]) == pytest.approx([each[2], each[4]])
