"""Whole runs: what they record, and that stopping and starting changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gpt2
from gpt2.data.batches import evaluation_starts, gather
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.formats.layout import best_step, saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train
from gpt2.training.recipes import dump_toml

KILLS = int(os.environ.get("GPT2_TEST_KILLS", "2"))
"""How often a run is killed; more make the test longer."""


def curve(run: Path) -> list[tuple]:
    """All that must come out the same again: losses, norms and learning rates of every step, evaluations, samples."""
    keys = ("event", "step", "loss", "grad_norm", "lr", "tokens", "train_loss", "val_loss", "text")
    return [tuple(r.get(k) for k in keys) for r in read_log(run) if r["event"] in ("train", "eval", "sample")]


def final_weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step_{saved_steps(run)[0]:07d}" / "model.safetensors").read_bytes()


def test_a_run_learns_and_records_everything(tiny, tmp_path: Path) -> None:
    result = train(tiny(max_iters=60, sample_interval=30, sample_tokens=20, sample_start="the"))
    run = tmp_path / "run"
    records = read_log(run)
    assert [r["step"] for r in records if r["event"] == "train"] == list(range(1, 61))
    evaluations = [r for r in records if r["event"] == "eval"]
    assert [r["step"] for r in evaluations] == list(range(0, 61, 10))
    assert result.val_loss == evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 0.5
    assert result.step == 60
    assert not result.stopped
    assert records[0]["event"] == "start"
    assert records[-1]["event"] == "end"
    assert records[-1]["tokens"] == 60 * 4 * 16
    for r in records:
        assert r["time"] > 1.7e9
        if r["event"] == "train":
            assert {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu"} <= set(r)
            assert r["tokens"] == r["step"] * 64
    assert sorted(p.name for p in (run / "samples").iterdir()) == [f"step_{s:07d}.txt" for s in (0, 30, 60)]
    assert (run / "samples" / "step_0000060.txt").read_text().startswith("the")
    assert sorted(p.name for p in run.iterdir()) == [
        ".lock", "checkpoints", "config.toml", "log.jsonl", "samples",
    ]  # fmt: skip


def test_evaluation_is_the_mean_over_fixed_blocks(tiny, tmp_path: Path, dataset: Path) -> None:
    result = train(tiny(max_iters=3, eval_iters=3))
    model, _ = gpt2.load(str(tmp_path / "run" / "checkpoints" / "step_0000003"))
    tokens = open_dataset(str(dataset)).splits["val"]
    losses = []
    for start in evaluation_starts(tokens, 16, 12):
        x, y = gather(tokens, [start], 16, torch.device("cpu"))
        with torch.no_grad():
            losses.append(model(x, y)[1].item())
    assert result.val_loss == pytest.approx(sum(losses) / 12, abs=1e-5)


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tiny, tmp_path: Path) -> None:
    """Stopped and resumed at steps that are and are not those of evaluations, with dropout."""
    settings = {"dropout": 0.2, "sample_interval": 5, "sample_tokens": 5, "keep_checkpoints": 1}
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


def start_process(config: TrainConfig) -> subprocess.Popen:
    """The run as a process of its own; what it says goes to a file."""
    folder = Path(config.out_dir).parent
    (folder / "recipe.toml").write_text(dump_toml(config.as_dict()))
    with (folder / "stderr.txt").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "gpt2", "train", str(folder / "recipe.toml"), "--init_from=auto"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=stderr,
        )


def wait_for_step(config, step: int, process: subprocess.Popen) -> None:
    """Until the log has a record of `step`."""
    log = Path(config.out_dir) / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"event": "train", "step": {step},' in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} in {log}")


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


def safe_log(run: Path) -> list[dict]:
    try:
        return read_log(run)
    except UserError:
        return []


def test_a_second_signal_exits_at_once(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=100_000, out_dir=str(tmp_path / "r"), log_interval=100_000, eval_interval=0)
    config_log = Path(config.out_dir) / "log.jsonl"
    process = start_process(config)
    while not config_log.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    # Stopped, the process gets both signals before it can finish its step; the kernel delivers SIGINT first.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(number)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_the_logged_loss_is_the_mean_over_all_micro_batches(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2, batch_size=6))
    (tmp_path / "run").rename(tmp_path / "whole")
    train(tiny(max_iters=2, batch_size=2, gradient_accumulation_steps=3))
    a, b = ([r["loss"] for r in read_log(tmp_path / name) if r["event"] == "train"] for name in ("whole", "run"))
    assert a == pytest.approx(b, rel=1e-5)


def test_log_interval_changes_no_record(tiny, tmp_path: Path) -> None:
    train(tiny())
    (tmp_path / "run").rename(tmp_path / "every")
    train(tiny(log_interval=7))
    assert curve(tmp_path / "run") == curve(tmp_path / "every")


def test_best_and_newest_checkpoints_are_kept(tiny, tmp_path: Path) -> None:
    """With a learning rate that wrecks the model after step 10 the best checkpoint is an old one."""
    config = tiny(max_iters=20, eval_interval=5, keep_checkpoints=1, checkpoint_interval=1)
    train(tiny(max_iters=10, eval_interval=5, keep_checkpoints=1))
    train(config.__class__(**config.as_dict() | {"init_from": "resume", "learning_rate": 10.0, "min_lr": 10.0}))
    steps = saved_steps(tmp_path / "run")
    best = min((r["val_loss"], r["step"]) for r in read_log(tmp_path / "run") if r["event"] == "eval")[1]
    assert steps == [20, best]
    assert best <= 10


def test_only_improvements_are_saved_where_asked(tiny, tmp_path: Path) -> None:
    train(tiny(learning_rate=0.0, min_lr=0.0, always_save_checkpoint=False, keep_checkpoints=0))
    assert saved_steps(tmp_path / "run") == [20]  # nothing improves; the end is saved all the same


def test_a_run_is_not_overwritten_unasked(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(UserError, match="--overwrite"):
        train(tiny(max_iters=2))
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(tiny(max_iters=3, overwrite=True))
    assert saved_steps(tmp_path / "run") == [3]
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_eval_only_writes_nothing(tiny, tmp_path: Path) -> None:
    result = train(tiny(eval_only=True, eval_iters=0))
    assert result.val_loss == pytest.approx(torch.log(torch.tensor(22.0)).item(), abs=0.7)
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_run_and_its_shape(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume"):
        train(tiny(init_from="resume"))
    train(tiny(max_iters=2))
    with pytest.raises(UserError, match="n_layer=2, not 3"):
        train(tiny(init_from="resume", n_layer=3))


def test_fine_tuning_starts_from_the_model_and_crops_it(tiny, tmp_path: Path) -> None:
    train(tiny())
    (tmp_path / "run").rename(tmp_path / "base")
    shape = {"n_layer": None, "n_head": None, "n_embd": None}
    result = train(tiny(**shape, init_from=str(tmp_path / "base"), block_size=8, max_iters=0))
    assert "n_layer = 2\n" in (tmp_path / "run" / "config.toml").read_text()
    assert result.val_loss < 2.6
    model, _ = gpt2.load(str(tmp_path / "base"))
    assert model.config.block_size == 16
    with pytest.raises(UserError, match="has n_embd=16, not 32"):
        train(tiny(init_from=str(tmp_path / "base"), n_embd=32, overwrite=True))
    with pytest.raises(UserError, match="more than the model's 16"):
        train(tiny(init_from=str(tmp_path / "base"), block_size=32, overwrite=True))


def test_fine_tuning_with_another_tokenizer_is_refused(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=1))
    (tmp_path / "other.txt").write_text("entirely different letters: xyz! " * 50)
    other = gpt2.data.prepare.prepare(tmp_path / "other.txt", out=tmp_path / "other", tokenizer="char")
    with pytest.raises(UserError, match="another char tokenizer"):
        train(tiny(init_from=str(tmp_path / "run"), dataset=str(other), out_dir=str(tmp_path / "new")))


def test_time_limit_ends_the_run_with_a_checkpoint(tiny, tmp_path: Path) -> None:
    result = train(tiny(max_iters=1_000_000, warmup_iters=0, eval_interval=0, max_minutes=0.01))
    assert 0 < result.step < 1_000_000
    assert saved_steps(tmp_path / "run")[0] == result.step


def test_a_compiler_that_fails_is_said_and_done_without(tiny, monkeypatch, capfd) -> None:
    def broken(model):
        def forward(*args):
            raise RuntimeError("no compiler\nmore")

        return forward

    monkeypatch.setattr(torch, "compile", broken)
    result = train(tiny(compile=True, max_iters=2))
    assert result.step == 2
    assert "torch.compile cannot work here (no compiler); training without it" in capfd.readouterr().err


def test_samples_of_a_prompt_that_cannot_be_encoded_are_refused_at_the_start(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'ß'"):
        train(tiny(sample_interval=10, sample_start="ß"))
    assert not (tmp_path / "run").exists()


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
    from gpt2.training import loop

    estimate = loop.estimate_losses

    def interrupted(run):
        if run.state.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return estimate(run) if run.state.step < 10 else {"train_loss": 9.0, "val_loss": 9.0}

    monkeypatch.setattr(loop, "estimate_losses", interrupted)
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


def test_what_is_no_runs_is_not_deleted(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("samples/kick.wav", "checkpoints/other.pt", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    (run / "config.toml").write_text("batch_size = 3  # a recipe of my own\n")
    with pytest.raises(UserError, match=r"config\.toml is no run's"):
        train(tiny())
    (run / "config.toml").rename(run / "mine.toml")
    train(tiny(max_iters=1))
    train(tiny(max_iters=2, overwrite=True))
    assert saved_steps(run) == [2]
    for name in ("samples/kick.wav", "checkpoints/other.pt", "notes.txt"):
        assert (run / name).read_text() == "mine"


def test_two_processes_do_not_train_in_one_folder(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=100_000, out_dir=str(tmp_path / "r"), eval_interval=0, log_interval=1000)
    process = start_process(config)
    try:
        wait_for_step(config, 1000, process)
        with pytest.raises(UserError, match="another process is training"):
            train(replace(config, overwrite=True))
    finally:
        process.kill()
        process.wait()
    assert read_log(tmp_path / "r")


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
    for damage in ("learning_rate = ", None):
        path = tmp_path / "run" / "config.toml"
        path.unlink() if damage is None else path.write_text(damage)
        steps = saved_steps(tmp_path / "run")[0] + 1
        assert gpt2.train(gpt2.resume_config(tmp_path / "run", max_iters=steps)).step == steps


def test_a_used_up_time_limit_is_said(tiny, tmp_path: Path, capfd) -> None:
    train(tiny(max_iters=1_000_000, warmup_iters=0, eval_interval=0, max_minutes=0.001))
    capfd.readouterr()
    train(gpt2.resume_config(tmp_path / "run"))
    assert "max_minutes=0.001 is used up" in capfd.readouterr().err


def test_a_run_that_came_to_no_checkpoint_is_replaced(tiny, tmp_path: Path, monkeypatch) -> None:
    from gpt2.training import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", lambda run: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny())
    train(tiny(max_iters=2))
    assert [r["event"] for r in read_log(tmp_path / "run")].count("start") == 1


def test_overwrite_comes_after_every_check(tiny, tmp_path: Path, monkeypatch) -> None:
    train(tiny(max_iters=2))
    monkeypatch.setitem(sys.modules, "wandb", None)
    for changes in ({"wandb_log": True}, {"block_size": 10**6}, {"dataset": "nowhere"}):
        with pytest.raises(UserError):
            train(tiny(overwrite=True, **changes))
        assert saved_steps(tmp_path / "run") == [2]


def test_other_tokens_at_a_resume_are_noticed(tiny, dataset: Path, text: str, tmp_path: Path, capfd) -> None:
    from gpt2.data.prepare import prepare

    (tmp_path / "other.txt").write_text(text[1000:] + text[:1000])
    other = prepare(tmp_path / "other.txt", out=tmp_path / "other", tokenizer="char")
    train(tiny(max_iters=2))
    capfd.readouterr()
    train(tiny(max_iters=3, init_from="resume", dataset=str(other)))
    assert "are not those the run began with" in capfd.readouterr().err


def test_precision_can_change_at_a_resume(tiny, tmp_path: Path) -> None:
    for step, dtype in enumerate(("float32", "float16", "bfloat16", "float16"), start=1):
        assert train(tiny(max_iters=step, init_from="auto", dtype=dtype)).step == step


def test_out_of_memory_names_the_knob(tiny, monkeypatch) -> None:
    def exhausted(model):
        def forward(*args):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return forward

    monkeypatch.setattr(torch, "compile", exhausted)
    with pytest.raises(UserError, match="lower --batch_size"):
        train(tiny(compile=True))


def test_losses_that_are_no_numbers_are_logged_as_json(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=30, learning_rate=1e30, min_lr=1e30, grad_clip=0.0))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert None in [r["loss"] for r in records if r["event"] == "train"]
