"""Stopping and starting changes nothing."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import curve, final_weights, read_only, safe_log, start_process, wait_for_step

import gpt2
from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.run_folder import best_step, saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.loop import train
from gpt2.training.saver import Saver

KILLS = int(os.environ.get("GPT2_TEST_KILLS", "2"))
"""How often a run is killed; more make the test longer."""


@pytest.mark.parametrize(("heed", "optimizer"), [(False, "adamw"), (True, "adamw"), (False, "muon")])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    tiny, heeding: dict, heed: bool, optimizer: str, tmp_path: Path
) -> None:
    """Stopped and resumed at steps that are and are not those of evaluations, with dropout."""
    settings = {"dropout": 0.2, "sample_interval": 5, "sample_tokens": 5, "keep_checkpoints": 1}
    settings |= {"optimizer": optimizer, **(heeding if heed else {})}
    train(tiny(**settings))
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    for stop in (0, 3, 10, 17):
        train(tiny(**settings, init_from="auto", max_iters=stop, lr_decay_iters=20, warmup_iters=1))
    train(tiny(**settings, init_from="resume"))
    run = tmp_path / "run"
    # The stops ended with an evaluation of their own; the steps, and the evaluations both have, are the same.
    assert set(curve(whole)) <= set(curve(run))
    assert [r for r in curve(run) if r[0] == "train"] == [r for r in curve(whole) if r[0] == "train"]
    assert final_weights(run) == final_weights(whole)


def test_killed_and_terminated_runs_end_as_the_undisturbed_one(tiny, tmp_path: Path) -> None:
    steps = 60 * (KILLS + 3)
    settings = {"max_iters": steps, "checkpoint_interval": 20, "eval_interval": 100, "dropout": 0.1}
    undisturbed = tiny(**settings, out_dir=str(tmp_path / "undisturbed"))
    process = start_process(undisturbed)
    assert process.wait(120) == 0

    disturbed = tiny(**settings, out_dir=str(tmp_path / "disturbed"))
    rng = random.Random(time.time())
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    for number in [signal.SIGKILL] * (KILLS - 2) + signals:
        process = start_process(disturbed)
        last = max((r["step"] for r in safe_log(tmp_path / "disturbed")), default=0)
        wait_for_step(disturbed, last + rng.randint(1, 60), process)
        process.send_signal(number)
        status = process.wait(60)
        assert status == (-9 if number == signal.SIGKILL else 75)
    process = start_process(disturbed)
    assert process.wait(120) == 0
    assert curve(tmp_path / "disturbed") == curve(tmp_path / "undisturbed")
    assert final_weights(tmp_path / "disturbed") == final_weights(tmp_path / "undisturbed")


def test_a_run_killed_inside_its_first_save_begins_again(tiny, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / ".step_0000020.tmp").mkdir(parents=True)
    (tmp_path / "run" / "log.jsonl").write_text("")
    train(tiny(max_iters=2, init_from="auto"))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob(".*")] == []


def test_a_second_signal_exits_at_once(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=100_000, out_dir=str(tmp_path / "r"), log_interval=100_000, eval_interval=0)
    config_log = Path(config.out_dir) / "log.jsonl"
    process = start_process(config)
    while not config_log.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    # Stopped, the process gets both signals before it can finish its step, in an order that the kernel chooses.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(number)
    assert process.wait(60) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_resume_needs_a_run_and_its_shape(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume"):
        train(tiny(init_from="resume"))
    train(tiny(max_iters=2))
    with pytest.raises(UserError, match="n_layer=2, not 3"):
        train(tiny(init_from="resume", n_layer=3))


def test_a_resume_deletes_nothing(tiny, tmp_path: Path) -> None:
    run = train(tiny()).out_dir
    with pytest.raises(UserError, match="overwrite would delete the run"):
        train(gpt2.resume_config(run, overwrite=True))


def test_settings_changed_at_a_resume_are_said(tiny, capfd) -> None:
    train(tiny(max_iters=2))
    capfd.readouterr()
    train(tiny(max_iters=4, init_from="resume", learning_rate=5e-3))
    err = capfd.readouterr().err
    assert "changed for this resume: learning_rate=0.005 (was 0.01)" in err
    assert "changed for this resume: max_iters=4 (was 2)" in err


def test_log_survives_a_torn_last_line(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=4, eval_interval=2))
    log = tmp_path / "run" / "log.jsonl"
    with log.open("a") as file:
        file.write('{"event": "train", "st')
    train(tiny(max_iters=6, eval_interval=2, init_from="resume"))
    assert [r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    for line in log.read_text().splitlines():
        json.loads(line)


def test_a_signal_during_an_evaluation_saves_what_there_is(tiny, tmp_path: Path, monkeypatch) -> None:
    from gpt2.training import periodic

    estimate = periodic.estimate_losses

    def interrupted(run, progress):
        if run.state.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return estimate(run, lambda *_: None) if run.state.step < 10 else {"train_loss": 9.0, "val_loss": 9.0}

    monkeypatch.setattr(periodic, "estimate_losses", interrupted)
    result = train(tiny(always_save_checkpoint=False))
    assert result.stopped
    assert saved_steps(tmp_path / "run") == [10]


def test_a_resumed_run_keeps_its_settings_and_a_library_call_needs_no_others(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=4, lr_decay_iters=8, warmup_iters=1, learning_rate=3e-3))
    result = gpt2.train(gpt2.resume_config(tmp_path / "run", max_iters=8))
    assert result.step == 8
    (tmp_path / "run").rename(tmp_path / "resumed")
    train(tiny(max_iters=8, warmup_iters=1, learning_rate=3e-3))
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "resumed")
    assert 'init_from = "scratch"' in (tmp_path / "resumed" / "config.toml").read_text()
    with pytest.raises(UserError, match="no run to resume"):
        gpt2.resume_config(tmp_path / "nowhere")


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=100_000, out_dir=str(tmp_path / "r"), eval_interval=0, log_interval=1000)
    process = start_process(config)
    try:
        wait_for_step(config, 1000, process)
        assert not saved_steps(tmp_path / "r")
        for changes in ({}, {"overwrite": True}, {"init_from": "auto"}, {"init_from": "resume"}):
            with pytest.raises(UserError, match="another process is training"):
                train(replace(config, **changes))
    finally:
        process.kill()
        process.wait()
    assert read_log(tmp_path / "r")


@pytest.mark.parametrize("has_lock", [False, True])
def test_a_folder_that_cannot_be_written_is_named(has_lock: bool, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny().dataset, "d")
    config = tiny(max_iters=2, out_dir="run", dataset="d")
    train(config)
    if not has_lock:
        Path("run/.lock").unlink()
    with (
        read_only(Path("run")),
        pytest.raises(UserError, match=r"^cannot write to run \(Permission denied\); make that folder writable"),
    ):
        train(replace(config, init_from="resume", max_iters=4))
    assert saved_steps(Path("run")) == [2]


def test_a_stop_at_the_end_leaves_the_last_evaluation_to_the_resume(tiny, tmp_path: Path, monkeypatch) -> None:
    from gpt2.training import loop

    step = loop.train_step

    def last_step_interrupted(run):
        if run.state.step == 19:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", last_step_interrupted)
        assert train(tiny()).stopped
    assert best_step(tmp_path / "run") == 10
    result = train(tiny(init_from="resume"))
    assert not result.stopped
    assert best_step(tmp_path / "run") == 20


def test_a_resume_survives_the_loss_of_its_config_file(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2))
    (tmp_path / "run" / "config.toml").unlink()
    assert gpt2.train(gpt2.resume_config(tmp_path / "run", max_iters=3)).step == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("learning_rat = 0.01", "no setting 'learning_rat'; did you mean learning_rate?"),
        ("learning_rate = ", "is not valid TOML"),
        ('learning_rate = "fast"', "it must be float"),
    ],
)
def test_a_mistake_in_an_edited_config_file_is_refused_and_kept(
    tiny, gpt2_command, tmp_path: Path, line: str, problem: str
) -> None:
    train(tiny(max_iters=2))
    path = tmp_path / "run" / "config.toml"
    edited = path.read_text().replace("learning_rate = 0.01\n", line + "\n", 1)
    path.write_text(edited)
    status, _, err = gpt2_command("train", "--init_from=resume", f"--out_dir={tmp_path / 'run'}", "--max_iters=3")
    assert status == 2
    assert str(path) in err and problem in err
    assert path.read_text() == edited
    assert saved_steps(tmp_path / "run") == [2]


def test_a_used_up_time_limit_is_said(tiny, tmp_path: Path, capfd) -> None:
    train(tiny(max_iters=1_000_000, warmup_iters=0, eval_interval=0, max_minutes=0.001))
    capfd.readouterr()
    train(gpt2.resume_config(tmp_path / "run"))
    assert "max_minutes=0.001 is used up" in capfd.readouterr().err


def test_other_tokens_at_a_resume_are_noticed(tiny, dataset: Path, text: str, tmp_path: Path, capfd) -> None:
    from gpt2.data.prepare import prepare

    (tmp_path / "other.txt").write_text(text[1000:] + text[:1000])
    other = prepare(tmp_path / "other.txt", out=tmp_path / "other", tokenizer="char")
    train(tiny(max_iters=2))
    capfd.readouterr()
    train(tiny(max_iters=3, init_from="resume", dataset=str(other)))
    assert "are not those the run began with" in capfd.readouterr().err


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_optimizer_can_change_at_a_resume(tiny, before: str, after: str, capfd) -> None:
    train(tiny(max_iters=4, optimizer=before))
    assert train(tiny(max_iters=8, optimizer=after, init_from="resume")).step == 8
    assert f"changed for this resume: optimizer={after} (was {before})" in capfd.readouterr().err


def test_precision_can_change_at_a_resume(tiny, tmp_path: Path) -> None:
    for step, dtype in enumerate(("float32", "float16", "bfloat16", "float16"), start=1):
        assert train(tiny(max_iters=step, init_from="auto", dtype=dtype)).step == step


def test_checkpoints_written_beside_the_training_are_the_same(tiny, tmp_path: Path) -> None:
    settings = {"max_iters": 12, "checkpoint_interval": 3, "keep_checkpoints": 0, "dropout": 0.1}
    runs = [tmp_path / name for name in ("waiting", "beside")]
    for run in runs:
        train(tiny(**settings, out_dir=str(run), async_checkpoint=run.name == "beside"))
    for step in (3, 6, 9, 12):
        for name in ("model.safetensors", "optimizer.safetensors"):
            one, other = ((run / "checkpoints" / f"step_{step:07d}" / name).read_bytes() for run in runs)
            assert one == other, (step, name)
    assert curve(runs[0]) == curve(runs[1])
    for run in runs:
        assert saved_steps(run) == [12, 10, 9, 6, 3]
        assert [r["step"] for r in read_log(run) if r["event"] == "checkpoint"] == [3, 6, 9, 10, 12]
        assert (run / "checkpoints" / "best.json").exists()


def test_what_goes_wrong_beside_the_training_ends_it_at_the_next_step(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, save = checkpoint.write, Saver.save

    def full(taken: checkpoint.Checkpoint, world: object = None) -> None:
        if taken.folder.name == "step_0000006":
            raise UserError("no room")
        write(taken)

    def save_and_join(saver: Saver, *arguments: Any) -> None:  # so that it is known which step is the next
        save(saver, *arguments)
        assert saver.thread is not None
        saver.thread.join()

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr(Saver, "save", save_and_join)
    with pytest.raises(UserError, match="no room; step 7 is saved: go on with gpt2 train --init_from=resume"):
        train(tiny(max_iters=12, checkpoint_interval=3, eval_interval=0, log_interval=100, async_checkpoint=True))
    assert max(r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train") <= 7
    assert saved_steps(tmp_path / "run") == [7, 3]


def test_another_machine_at_a_resume_is_said(tiny, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(max_iters=2))
    train(tiny(max_iters=3, init_from="resume"))
    assert "last bits" not in capfd.readouterr().err
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        train(tiny(max_iters=4, init_from="resume"))
    finally:
        torch.set_num_threads(threads)
    assert f"threads={threads + 1} (was {threads}); from here on results differ in their last bits" in (
        capfd.readouterr().err
    )
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    train(tiny(max_iters=5, init_from="resume"))
    assert "torch=9.9.9 (was " in capfd.readouterr().err


@pytest.mark.parametrize("form", ["prepared", "nanogpt", "llmc", "npy"])
def test_other_tokens_of_the_same_length_at_a_resume_are_said(
    form: str, tiny, dataset: Path, tmp_path: Path, capfd
) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    files = sorted(data.glob("*.bin"))
    if form != "prepared":
        (data / "dataset.json").unlink()
        ids = np.fromfile(files[0], "<u2")
    if form == "llmc":
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(ids)
        files[0].write_bytes(header.tobytes() + ids.tobytes())
    if form == "npy":
        files[0].unlink()
        files[0] = files[0].with_suffix(".npy")
        np.save(files[0], ids)
    shape = {"dataset": str(data), "eval_interval": 0}
    train(tiny(**shape, max_iters=2))
    train(tiny(**shape, max_iters=3, init_from="resume"))
    assert "the tokens in" not in capfd.readouterr().err
    content = bytearray(files[0].read_bytes())
    content[-100:-50], content[-50:] = content[-50:], content[-100:-50]
    files[0].write_bytes(content)
    train(tiny(**shape, max_iters=4, init_from="resume"))
    assert "are not those the run began with" in capfd.readouterr().err
