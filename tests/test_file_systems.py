"""File systems that lack locks, or cannot flush to the disk: the work goes on, and one line says what is lost."""

import errno
import fcntl
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from gpt2.errors import MachineWarning
from gpt2.files import locked, publish, write_text
from gpt2.tensor_file import write_tensors
from gpt2.training.loop import train

LACKING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


def refuse(number: int) -> Any:
    def call(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", LACKING)
def test_without_locks_a_folder_counts_as_free(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    with (
        pytest.warns(MachineWarning, match=f"the file system of {tmp_path} has no locks"),
        locked(tmp_path / "l") as got,
    ):
        assert got


def test_a_lock_that_another_process_holds_is_respected(tmp_path: Path) -> None:
    with locked(tmp_path / "l") as first, locked(tmp_path / "l") as second:
        assert (first, second) == (True, False)


def test_other_errors_of_a_lock_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "l"):
        pass


@pytest.mark.parametrize("number", LACKING)
def test_what_cannot_be_flushed_is_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(os, "fsync", refuse(number))
    with pytest.warns(MachineWarning, match="cannot be flushed to this disk"):
        write_text(tmp_path / "file.txt", "content")
        with publish(tmp_path / "folder", folder=True) as temporary:
            (temporary / "inside").write_text("inside")
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    assert (tmp_path / "file.txt").read_text() == "content"
    assert (tmp_path / "folder" / "inside").read_text() == "inside"


def test_a_disk_that_fails_to_flush_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "file.txt", "content")
    assert not (tmp_path / "file.txt").exists()


def test_a_run_says_each_thing_once(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert train(tiny(max_iters=6, eval_interval=2)).step == 6
    texts = [str(w.message) for w in caught if w.category is MachineWarning]
    assert len(texts) == len(set(texts))
    assert any("has no locks" in text for text in texts)


def test_the_command_prints_a_line(dataset: Path, tmp_path: Path, gpt2_command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    Path("t.txt").write_text("some text\n" * 400)
    status, _, err = gpt2_command("prepare", "t.txt", "--tokenizer=byte", "--out=p")
    assert status == 0, err
    [line] = [line for line in err.splitlines() if "locks" in line]
    assert line.startswith("the file system of p/")
    assert line.endswith(" has no locks: nothing stops two processes from writing to this folder")
