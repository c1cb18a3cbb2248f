"""Whether a trainer is seen: by its lock, or by new records."""

import time
from pathlib import Path

import pytest
from logs import write_log

from gpt2.files import locked
from gpt2.reporting import trainer
from gpt2.reporting.figures import report_on
from gpt2.reporting.trainer import is_training

START = {"event": "start", "step": 0, "time": 1000.0, "tokens": 0}


@pytest.mark.skipif(not trainer.LOCKS.exists(), reason="needs Linux's list of locks")
def test_a_trainer_is_seen_by_its_lock_also_between_records(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [START])
    assert report_on(run).status == "broken off"
    with locked(run / ".lock"):
        assert report_on(run).status == "running"
        assert report_on(run / "log.jsonl").status == "running"
    assert report_on(run).status == "broken off"


def test_a_new_record_counts_where_locks_are_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOCKS", tmp_path / "none")
    with locked(tmp_path / ".lock"):
        assert not is_training(tmp_path, None)
        assert not is_training(tmp_path, time.time() - 3600)
        assert is_training(tmp_path, time.time() - 5)


def test_the_end_of_a_run_counts_more_than_its_lock(tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", [START, START | {"event": "end", "stopped": False}])
    with locked(run / ".lock"):
        assert report_on(run).status == "finished"
