import json
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.runlog.records import LogWriter, read_log


def write(path: Path, *records: tuple[str, int, float]) -> None:
    lines = [json.dumps({"event": e, "step": s, "time": 0, "value": v}) for e, s, v in records]
    path.write_text("".join(line + "\n" for line in lines))


def read(path: Path) -> list[tuple[str, int, float]]:
    return [(r["event"], r["step"], r["value"]) for r in read_log(path)]


def test_what_a_resume_does_again_is_read_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(
        log,
        ("start", 0, 0), ("eval", 0, 1), ("train", 1, 1), ("train", 2, 1), ("eval", 2, 1), ("checkpoint", 2, 1),
        ("train", 3, 1), ("train", 4, 1), ("eval", 4, 1),
        ("resume", 2, 0), ("eval", 2, 2), ("train", 3, 2),
        ("resume", 2, 0), ("eval", 2, 3), ("train", 3, 3), ("train", 4, 3),
    )  # fmt: skip
    assert read(log) == [
        ("start", 0, 0), ("eval", 0, 1), ("train", 1, 1), ("train", 2, 1),
        ("checkpoint", 2, 1), ("resume", 2, 0), ("resume", 2, 0), ("eval", 2, 3), ("train", 3, 3), ("train", 4, 3),
    ]  # fmt: skip


def test_what_a_resume_does_not_do_again_stays(tmp_path: Path) -> None:
    """A run of 5 updates that is continued with an evaluation every 2: nothing replaces that of step 5."""
    log = tmp_path / "log.jsonl"
    write(
        log, ("train", 5, 1), ("eval", 5, 1), ("checkpoint", 5, 1), ("end", 5, 1), ("resume", 5, 0), ("train", 6, 2)
    )
    assert ("eval", 5, 1) in read(log)
    assert len(read(log)) == 6


def test_a_line_in_the_making_is_not_read_and_later_removed(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(log, ("start", 0, 0), ("train", 1, 1))
    with log.open("a") as file:
        file.write('{"event": "tr')
    assert read(log) == [("start", 0, 0), ("train", 1, 1)]
    with LogWriter(tmp_path) as writer:
        writer.write("train", 2, value=2)
        assert read(tmp_path) == [("start", 0, 0), ("train", 1, 1), ("train", 2, 2)]  # already on disk


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0}\nrubbish\n')
    with pytest.raises(UserError, match="line 2"):
        read_log(tmp_path)


def test_a_folder_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no log"):
        read_log(tmp_path)


def test_two_evaluations_of_one_step_both_stay(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(
        log,
        ("eval", 2, 1), ("eval", 2, 1), ("checkpoint", 2, 1), ("train", 3, 1),
        ("resume", 2, 0), ("eval", 2, 2), ("eval", 2, 3), ("train", 3, 2),
    )  # fmt: skip
    assert read(log) == [("checkpoint", 2, 1), ("resume", 2, 0), ("eval", 2, 2), ("eval", 2, 3), ("train", 3, 2)]
