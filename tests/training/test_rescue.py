"""Whatever ends a run, its last whole step is saved first, and one line says what happened."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import curve, final_weights

from gpt2 import accounting, checkpoint
from gpt2.data import batches as batches_module
from gpt2.data.prepare import prepare
from gpt2.errors import TrainingFailed, UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.optim.muon import Muon
from gpt2.runlog.records import read_log
from gpt2.training import loop, periodic
from gpt2.training import step as step_module
from gpt2.training.loop import train
from gpt2.training.recipes import dump_toml
from gpt2.training.step_records import StepRecords

SETTINGS = {"max_iters": 12, "eval_interval": 4, "sample_interval": 4, "sample_tokens": 5, "dropout": 0.1}


def failing(call: int, error: Callable[[], BaseException], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call number `call` raises."""
    calls = [0]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error()
        return function(*arguments, **named)

    return wrapped


@pytest.fixture
def whole(tiny, tmp_path: Path) -> Path:
    """A run that nothing happened to."""
    train(tiny(**SETTINGS, out_dir=str(tmp_path / "whole")))
    return tmp_path / "whole"


@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (loop, "train_step", 8, 7),
        (batches_module, "gather", 10, 9),
        (step_module, "learning_rate", 10, 9),
        (periodic, "estimate_losses", 3, 8),
        (periodic, "sample_texts", 3, 8),
        (StepRecords, "write", 7, 7),
        (periodic.Saving, "run", 2, 8),
        (accounting, "mfu", 6, 6),
    ],
)
@pytest.mark.parametrize("error", [lambda: ValueError("what\nmore"), lambda: OSError(5, "I/O error", "a/file")])
def test_an_exception_anywhere_in_the_loop_loses_no_step(
    owner: Any, name: str, call: int, saved: int, error: Any, tiny, whole: Path, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(call, error, getattr(owner, name)))
        with pytest.raises(UserError) as failure:
            train(tiny(**SETTINGS))
    assert "\n" not in str(failure.value)
    assert f"step {saved} is saved: go on with gpt2 train --init_from=resume" in str(failure.value)
    if isinstance(error(), OSError):
        assert str(failure.value).startswith("a/file: I/O error; ")
        assert failure.value.status == 2
    else:
        assert isinstance(failure.value, TrainingFailed)
        assert failure.value.status == 1
        end = read_log(tmp_path / "run")[-1]
        assert (end["event"], end["because"]) == ("end", "error")
        assert end["traceback"].endswith("ValueError: what\nmore\n")
    assert saved_steps(tmp_path / "run")[0] == saved
    assert train(tiny(**SETTINGS, init_from="resume")).step == 12
    assert final_weights(tmp_path / "run") == final_weights(whole)
    assert [r for r in curve(tmp_path / "run") if r[0] == "train"] == [r for r in curve(whole) if r[0] == "train"]


def test_losses_that_were_not_logged_yet_are_logged(tiny, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", failing(8, lambda: ValueError("no"), loop.train_step))
        with pytest.raises(UserError, match="step 7 is saved"):
            train(tiny(max_iters=12, eval_interval=0, log_interval=100))
    assert [r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train"] == [1, 2, 3, 4, 5, 6, 7]


def test_half_an_update_is_not_saved(tiny, tmp_path: Path, monkeypatch) -> None:
    settings = {"max_iters": 9, "eval_interval": 0, "checkpoint_interval": 3, "optimizer": "muon"}
    train(tiny(**settings, out_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:  # Muon's matrices come after AdamW has changed the rest
        patch.setattr(Muon, "step", failing(6, lambda: RuntimeError("no"), Muon.step))
        with pytest.raises(TrainingFailed, match=r"; it happened in the middle of step 6, so nothing after"):
            train(tiny(**settings))
    assert saved_steps(tmp_path / "run") == [3]
    assert train(tiny(**settings, init_from="resume")).step == 9
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_nothing_is_saved_before_the_first_update(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "train_step", failing(1, lambda: ValueError("no"), loop.train_step))
    with pytest.raises(TrainingFailed, match=r"log\.jsonl\)$"):
        train(tiny())
    assert saved_steps(tmp_path / "run") == []


def test_an_interrupt_from_elsewhere_saves_and_goes_on_its_way(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "train_step", failing(4, KeyboardInterrupt, loop.train_step))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(eval_interval=0))
    assert saved_steps(tmp_path / "run") == [3]


def test_a_checkpoint_that_fails_once_is_written_again(tiny, tmp_path: Path, monkeypatch) -> None:
    error = UserError("no room")
    monkeypatch.setattr(checkpoint, "write", failing(2, lambda: error, checkpoint.write))
    with pytest.raises(UserError, match=r"^no room; step 8 is saved"):
        train(tiny(max_iters=12, eval_interval=4))
    assert saved_steps(tmp_path / "run") == [8, 4]


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_stays_full_is_said_once(background: bool, tiny, tmp_path: Path, monkeypatch) -> None:
    free = iter(range(1000))
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: next(free))  # another process writes there too
    with pytest.raises(UserError) as failure:
        train(tiny(max_iters=12, eval_interval=4, async_checkpoint=background))
    assert str(failure.value).count("No space left on device") == 1
    assert str(failure.value).count("make room") == 1
    assert str(failure.value).endswith("; nothing after the last checkpoint is saved")


def test_what_keeps_the_last_step_from_being_saved_is_said_if_it_is_something_else(tiny, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 0)
    monkeypatch.setattr(loop, "train_step", failing(3, lambda: ValueError("no"), loop.train_step))
    with pytest.raises(TrainingFailed, match=r"ValueError: no .*; step 2 could not be saved \(.*No space left.*make"):
        train(tiny(eval_interval=0))


def test_without_file_descriptors_the_last_step_is_saved(tiny, tmp_path: Path, monkeypatch) -> None:
    step, taken = loop.train_step, []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhausting(run: Any) -> Any:
        if run.state.step == 6:
            try:
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
        return step(run)

    monkeypatch.setattr(loop, "train_step", exhausting)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, limits[1]))
        with pytest.raises(UserError, match=r"Too many open files.*; step 6 is saved"):
            train(tiny(eval_interval=0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
    assert saved_steps(tmp_path / "run") == [6]


@pytest.mark.parametrize("fault", ["deleted", "shorter", "other ids"])
def test_a_dataset_that_vanishes_or_changes_ends_the_run_and_loses_nothing(
    fault: str, tiny, text: str, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "text.txt").write_text(text)
    data = prepare(tmp_path / "text.txt", out=tmp_path / "data", tokenizer="char")
    file, kept, step = data / "train.bin", (data / "train.bin").read_bytes(), loop.train_step

    def changing(run: Any) -> Any:
        if run.state.step == 5:
            if fault == "deleted":
                file.unlink()
            else:
                file.write_bytes(kept[:40] if fault == "shorter" else b"\xff\xff" * (len(kept) // 2))
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", changing)
        with pytest.raises(UserError, match=r"train\.bin.*; step 5 is saved"):
            train(tiny(dataset=str(data), eval_interval=0))
    file.write_bytes(kept)
    assert train(tiny(dataset=str(data), eval_interval=0, init_from="resume")).step == 20


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_needs_to_read_what_a_run_says(closed: bool, tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=30, out_dir=str(tmp_path / "r"))
    (tmp_path / "recipe.toml").write_text(dump_toml(config.as_dict()))
    command = [sys.executable, "-m", "gpt2", "train", str(tmp_path / "recipe.toml")]
    if closed:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=None if closed else subprocess.PIPE
    )
    if process.stderr is not None:
        process.stderr.close()
    assert process.wait(60) == 0
    assert saved_steps(tmp_path / "r")[0] == 30


def test_a_folder_that_is_deleted_meanwhile_is_written_again(tiny, tmp_path: Path, monkeypatch) -> None:
    run_folder, step = tmp_path / "run", loop.train_step

    def deleting(run: Any) -> Any:
        if run.state.step == 5:
            shutil.rmtree(run_folder)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", deleting)
        with pytest.raises(UserError, match=r"was deleted or moved away during the run; step \d+ and the log are"):
            train(tiny(eval_interval=0))
    [saved] = saved_steps(run_folder)
    assert saved in (6, 7)
    assert [r["step"] for r in read_log(run_folder) if r["event"] == "train"] == list(range(1, saved + 1))
    assert train(tiny(eval_interval=0, init_from="resume")).step == 20
