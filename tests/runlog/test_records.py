import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2.errors import UserError
from gpt2.runlog.curves import load
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


@pytest.mark.parametrize(
    "line",
    [
        "", "3", "null", "[]", '"event"', '{"event": "train"}', '{"step": 3}', "[" * 3000, '{"a":' * 100_000,
        '{"event": "train", "step": "3"}', '{"event": "train", "step": 3.5}', '{"event": "train", "step": -1}',
        '{"event": ["train"], "step": 3}', '{"event": "train", "step": true}', f'{{"event": "x", "step": {10**30}}}',
        f'{{"event": "x", "step": {"9" * 5000}}}', '{"event": "x", "step": 1} {"event": "x", "step": 2}',
        '{"event": "eval", "step": 1, "val_loss": "x"}', '{"event": "eval", "step": 1, "seconds": {}}',
        '{"event": "train", "step": 1, "loss": [1]}', '{"event": "train", "step": 1, "seconds": 1}',
        '{"event": "train", "step": 1, "seconds": {"data": "1"}}', '{"event": "train", "step": 1, "tokens": "9"}',
        f'{{"event": "train", "step": 1, "tokens": {10**400}}}', '{"event": "other", "step": 1, "time": "now"}',
        '{"event": "other", "step": 1, "time": 1e300}', '{"event": "sample", "step": 1, "text": 5}',
        '{"event": "straggler", "step": 1}', '{"event": "resume", "step": 1, "because": 3}',
        '{"event": "resume", "step": 1, "data": "x"}', '{"event": "resume", "step": "x"}', "rubbish", "\0", "\udcff",
        '{"event": "train", "step": 1, "seconds": {"data": 1e300, "forward": -1e300}}', "x" * 100_000,
        '{"event": "start", "step": 1, "parameters": 1e300}', '{"event": "start", "step": 1, "device": [1]}',
        '{"event": "straggler", "step": 1, "rank": [], "host": "", "times": 1}', '{"event": "start", "step": null}',
        '{"event": "skip", "step": 1, "mfu": "x"}', '{"event": "resume", "step": 1, "data": {"val": 3}}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_skipped_and_counted(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2.runlog.records.LONGEST_LINE", 50_000)
    text = f'{{"event": "start", "step": 0}}\n{line}\n{{"event": "train", "step": 4}}\n'
    (tmp_path / "log.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    assert [r["step"] for r in read_log(tmp_path)] == [0, 4]
    assert [r["step"] for r in load(tmp_path).records] == [0, 4]
    assert load(tmp_path).unreadable == (1 if line else 0)


def test_figures_that_are_not_finite_are_none(tmp_path: Path) -> None:
    values = f'"loss": NaN, "lr": -Infinity, "grad_norm": 1e999, "mfu": {10**400}, "seconds": null'
    (tmp_path / "log.jsonl").write_text(f'{{"event": "train", "step": 1, {values}}}\n')
    figures = dict.fromkeys(("loss", "lr", "grad_norm", "mfu"))
    assert read_log(tmp_path) == [{"event": "train", "step": 1, **figures}]


def test_a_resume_that_is_no_record_goes_back_to_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(log, ("start", 0, 0), ("train", 1, 1), ("train", 2, 1))
    with log.open("a") as file:
        file.write('{"event": "resume", "step": 1, "because": 3}\n')
    assert read(log) == [("start", 0, 0), ("train", 1, 1), ("train", 2, 1)]


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


class Disk:
    """Has the log's file refuse to be written after some bytes, as a full disk does."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 0

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_records_wait_while_the_disk_is_full(tmp_path: Path) -> None:
    notes: list[str] = []
    with LogWriter(tmp_path, note=notes.append) as log:
        log.write("train", 1)
        log._file = disk = Disk(log._file)
        disk.room = 10  # a part of a line, which must not stay
        for step in (2, 3, 4):
            log.write("train", step)
        assert [r["step"] for r in read_log(tmp_path)] == [1]
        assert (tmp_path / "log.jsonl").read_bytes().endswith(b"}\n")
        disk.room = 10_000
        log.write("train", 5)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2, 3, 4, 5]
    assert len(notes) == 2
    assert "cannot be written (No space left on device); its records wait in memory" in notes[0]
    assert "can be written again: 4 records were added" in notes[1]


def test_what_waits_is_bounded_and_what_is_lost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.runlog.records.MOST_WAITING", 3)
    notes: list[str] = []
    with LogWriter(tmp_path, note=notes.append) as log:
        log._file = disk = Disk(log._file)
        for step in range(1, 6):
            log.write("train", step)
        disk.room = 10_000
        log.write("train", 6)
        disk.room = 0
        log.write("train", 7)
    assert [r["step"] for r in read_log(tmp_path)] == [4, 5, 6]
    assert [note.partition("log.jsonl ")[2] for note in notes] == [
        "cannot be written (No space left on device); its records wait in memory until it can",
        "can be written again: 3 records were added; 3 older ones are lost",
        "cannot be written (No space left on device); its records wait in memory until it can",
        "lacks the last 1 records (No space left on device)",
    ]


def test_a_sample_that_cannot_be_a_file_is_a_record_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    notes: list[str] = []
    with LogWriter(tmp_path, note=notes.append) as log:
        log.sample(3, "once")
    assert [r["text"] for r in read_log(tmp_path)] == ["once"]
    assert "step_0000003.txt cannot be written" in notes[0]


def test_a_log_that_was_deleted_is_noticed_and_written_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with LogWriter(run) as log:
        log.write("train", 1)
        assert not log.lost
        shutil.rmtree(run)
        log.write("train", 2)
        assert log.lost
        log.restore()
        assert not log.lost
        log.write("train", 3)
    assert [r["step"] for r in read_log(run)] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b"", b"{", b"x" * 70_000, b"x" * (1 << 16), b"x" * ((1 << 16) - 1)])
@pytest.mark.parametrize("before", [b"", b'{"event": "train", "step": 1}\n'])
def test_a_torn_line_of_any_length_is_cut(torn: bytes, before: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(before + torn)
    with LogWriter(tmp_path):
        assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_start_in_the_middle_begins_again(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        for event, step in [("start", 0), ("train", 1), ("train", 2), ("start", 0), ("train", 1), ("resume", 1)]:
            log.write(event, step)
    assert [(r["event"], r["step"]) for r in read_log(tmp_path)] == [("start", 0), ("train", 1), ("resume", 1)]


class NearlyFull:
    """A file on a disk that takes `room` bytes more."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 1 << 60

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, line: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(line[: self.room])
        self.room -= written
        return written


def test_a_torn_line_that_cannot_be_removed_at_once_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with LogWriter(tmp_path) as log:
        log._file = disk = NearlyFull(log._file)  # type: ignore[assignment]
        log.write("train", 1)
        with monkeypatch.context() as broken:
            broken.setattr(os, "ftruncate", fail)
            disk.room = 20
            log.write("train", 2)
            disk.room = 1 << 60
            log.write("train", 3)
        log.write("train", 4)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2, 3, 4]


def test_a_disk_that_fails_every_other_time_does_not_fill_the_console(tmp_path: Path) -> None:
    notes: list[str] = []
    with LogWriter(tmp_path, note=notes.append) as log:
        log._file = disk = NearlyFull(log._file)  # type: ignore[assignment]
        for step in range(1001):
            disk.room = 0 if step % 2 else 1 << 60
            log.write("train", step)
    assert [r["step"] for r in read_log(tmp_path)] == list(range(1001))
    assert 2 <= len(notes) < 30


def test_another_file_in_the_logs_place_is_not_overwritten(tmp_path: Path) -> None:
    with LogWriter(tmp_path) as log:
        log.write("train", 1)
        (tmp_path / "log.jsonl").unlink()
        (tmp_path / "log.jsonl").write_text("another\n")
        assert log.lost
        log.restore()
        log.write("train", 2)
    assert [r["step"] for r in read_log(tmp_path)] == [1, 2]
    assert (tmp_path / "log.jsonl.replaced").read_text() == "another\n"


def test_a_file_in_the_folders_place_is_a_lost_log(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with LogWriter(tmp_path / "run") as log:
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("in the way")
        assert log.lost


def test_a_log_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match=r"log\.jsonl cannot be written \(Is a directory\); choose another --out_dir"):
        LogWriter(tmp_path)


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.runlog.records.LONGEST_LINE", 100)
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "start", "step": 0}\n' + "x" * 99)
    assert len(read_log(tmp_path)) == 1  # the last line is not finished
    path.write_text('{"event": "start", "step": 0}\n' + "x" * 100)
    assert len(read_log(tmp_path)) == 1
    path.write_text('{"event": "start", "step": 0}\n' + "x" * 1000 + '\n{"event": "train", "step": 1}\n')
    assert len(read_log(tmp_path)) == 2
    assert load(tmp_path).unreadable == 1
