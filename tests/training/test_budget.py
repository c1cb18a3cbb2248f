"""What ends a run: budgets of updates, tokens and epochs, patience; and which checkpoint is then the best."""

import json
import os
import signal
from pathlib import Path

import pytest
from runs import curve, final_weights

import gpt2
from gpt2.accounting import Sharing
from gpt2.checkpoint import TrainState
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.formats.run_folder import best_step, saved_steps
from gpt2.model import GPTConfig
from gpt2.runlog.records import read_log
from gpt2.training import loop, periodic
from gpt2.training.budget import evaluations_since, last_step, log_late_decay, training_memory
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train


@pytest.mark.parametrize(
    ("budgets", "at", "expected", "told"),
    [
        # 1000 training tokens, 32 an update
        ({"max_iters": 7}, (0, 0), 7, []),
        ({"max_iters": 100, "max_tokens": 320}, (0, 0), 10, ["max_tokens=320 ends the run at step 10"]),
        ({"max_iters": 100, "max_tokens": 319}, (0, 0), 9, ["max_tokens=319 ends the run at step 9"]),
        ({"max_iters": 8, "max_tokens": 320}, (0, 0), 8, []),
        ({"max_iters": 100, "max_epochs": 1}, (0, 0), 31, ["max_epochs=1.0 ends the run at step 31"]),
        ({"max_iters": 100, "max_epochs": 0.5, "max_tokens": 640}, (0, 0), 15, ["max_epochs=0.5 ends"]),
        ({"max_iters": 100, "max_epochs": 2.0, "max_tokens": 640}, (0, 0), 20, ["max_tokens=640 ends"]),
        ({"max_iters": 100, "max_tokens": 640}, (5, 160), 20, ["max_tokens=640 ends"]),
        ({"max_iters": 100, "max_tokens": 640}, (5, 320), 15, ["ends the run at step 15"]),  # larger updates before
        ({"max_iters": 100, "max_tokens": 640}, (30, 960), 30, ["ends the run at step 30"]),
    ],
)
def test_the_smallest_budget_ends_the_run(budgets: dict, at: tuple, expected: int, told: list[str]) -> None:
    notes: list[str] = []
    config = TrainConfig(batch_size=4, block_size=8, **budgets)
    assert last_step(config, 1000, TrainState(step=at[0], tokens=at[1]), notes.append) == expected
    assert len(notes) == len(told)
    assert all(text in note for text, note in zip(told, notes, strict=True))


@pytest.mark.parametrize("budget", [{"max_tokens": 31}, {"max_epochs": 0.03}])
def test_a_budget_of_less_than_an_update_is_refused(budget: dict) -> None:
    with pytest.raises(UserError, match=r"3[01] tokens, less than the 32 of one optimizer step; raise --max_"):
        last_step(TrainConfig(batch_size=4, block_size=8, **budget), 1000, TrainState(), print)


def test_the_learning_rate_follows_the_budget(tiny, dataset: Path, tmp_path: Path) -> None:
    tokens = len(open_dataset(str(dataset)).splits["train"])
    budgets = {"tokens": {"max_tokens": 30 * 64 + 63}, "epochs": {"max_epochs": 30.5 * 64 / tokens}}
    train(tiny(max_iters=30, out_dir=str(tmp_path / "updates")))
    for name, budget in budgets.items():
        assert train(tiny(max_iters=1000, **budget, out_dir=str(tmp_path / name))).step == 30
        assert curve(tmp_path / name) == curve(tmp_path / "updates")


def test_a_resumed_run_keeps_its_budget_or_takes_another(tiny, tmp_path: Path, capfd) -> None:
    run = tmp_path / "run"
    assert train(tiny(max_iters=1000, max_tokens=640)).step == 10
    assert capfd.readouterr().err.count("max_tokens=640 ends the run at step 10") == 1
    assert train(gpt2.resume_config(run)).step == 10
    assert train(gpt2.resume_config(run, max_tokens=1280)).step == 20
    assert train(gpt2.resume_config(run, max_iters=15, max_tokens=1920)).step == 20
    assert train(gpt2.resume_config(run, max_iters=1000, max_tokens=1600, batch_size=2)).step == 20 + 320 // 32


@pytest.mark.parametrize(
    ("limits", "flags"),
    [
        ({"max_iters": 10}, "--max_iters=20 --lr_decay_iters=auto"),
        ({"max_iters": 1000, "max_tokens": 640}, "--max_tokens=1280 --lr_decay_iters=auto"),
        ({"max_iters": 1000, "max_epochs": 0.03}, "--max_epochs=0.06 --lr_decay_iters=auto"),
        ({"max_iters": 10, "max_tokens": 640}, "--max_iters=20 --max_tokens=1280 --lr_decay_iters=auto"),
        ({"max_minutes": 1e-9, "eval_interval": 0}, "--max_minutes=2e-09"),
    ],
)
def test_a_run_that_ended_says_which_limit_to_raise(
    tiny, tmp_path: Path, limits: dict, flags: str, gpt2_command, capfd
) -> None:
    done = train(tiny(**limits)).step
    assert f"--{read_log(tmp_path / 'run')[-1]['because']}=" in flags
    command = f"gpt2 train --init_from=resume --out_dir={tmp_path / 'run'} {flags}\n"
    assert f"to train on: {command}" in capfd.readouterr().err
    assert f"train it for longer: {command}" in gpt2_command("show", tmp_path / "run")[1]
    status, out, err = gpt2_command(*command.split()[1:], "--json")
    assert status == 0, err
    if "max_minutes" not in limits:
        assert json.loads(out)["step"] in (2 * done, 2 * done + 1)


def test_steps_of_a_run_are_counted_up_to_the_limit_that_ends_it(tiny, tmp_path: Path, gpt2_command) -> None:
    """64 tokens per step: 640 tokens are 10 steps, as are those of as many epochs."""
    tokens = len(open_dataset(str(tiny().dataset)).splits["train"])
    for name, limit in (("tokens", {"max_tokens": 640}), ("epochs", {"max_epochs": 640.5 / tokens})):
        run = train(tiny(max_iters=1000, **limit, out_dir=str(tmp_path / name))).out_dir
        assert "steps: 10 (of 10)" in gpt2_command("show", run)[1]
        assert "10/10" in gpt2_command("list", "runs", run)[1]


def script(monkeypatch: pytest.MonkeyPatch, val_losses: dict[int, float]) -> None:
    """Has the evaluation after so many updates give this loss."""
    monkeypatch.setattr(
        periodic, "estimate_losses", lambda run, progress: {"train_loss": 1.0, "val_loss": val_losses[run.state.step]}
    )


LOSSES = {0: 3.0, 5: 2.0, 10: 2.5, 15: 1.9, 20: 1.9, 25: 2.0, 30: 1.95, 35: 1.0, 40: 1.0}
PATIENT = {
    "max_iters": 40, "eval_interval": 5, "early_stopping_patience": 3, "warmup_iters": 1,
    "keep_checkpoints": 1, "always_save_checkpoint": False,
}  # fmt: skip


def test_patience_ends_the_run(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    script(monkeypatch, LOSSES)
    result = train(tiny(**PATIENT))
    assert (result.step, result.stopped) == (30, False)
    end = read_log(tmp_path / "run")[-1]
    assert (end["event"], end["because"], end["stopped"]) == ("end", "early_stopping_patience", False)
    said = capfd.readouterr().err
    assert "best at step 15, and not better in 3 evaluations since" in said
    assert said.endswith("--early_stopping_patience=6\n")
    assert saved_steps(tmp_path / "run") == [30, 15]
    assert best_step(tmp_path / "run") == 15
    assert train(gpt2.resume_config(tmp_path / "run")).step == 30
    assert train(gpt2.resume_config(tmp_path / "run", early_stopping_patience=4)).step == 40
    assert best_step(tmp_path / "run") == 35


def test_patience_is_the_same_after_a_stop(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, at an evaluation, and by a signal that leaves an evaluation out."""
    script(monkeypatch, LOSSES | {17: 1.9, 20: 1.9})
    train(tiny(**PATIENT, out_dir=str(tmp_path / "whole")))
    for steps in (17, 20):
        train(tiny(**PATIENT | {"max_iters": steps, "lr_decay_iters": 40}, init_from="auto"))
    step, signalled = loop.train_step, []

    def stopping(run):
        if run.state.step == 24 and not signalled:
            signalled.append(os.kill(os.getpid(), signal.SIGTERM))
        return step(run)

    monkeypatch.setattr(loop, "train_step", stopping)
    stopped = train(tiny(**PATIENT, init_from="auto"))
    assert (stopped.step, stopped.stopped) == (25, True)
    assert read_log(tmp_path / "run")[-1]["because"] == "signal"
    result = train(tiny(**PATIENT, init_from="auto"))
    assert (result.step, result.stopped) == (30, False)
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_evaluations_are_counted_from_the_best() -> None:
    # every 10 updates: 20 and 30 after the best of 10; 30 alone after that of 25, where a run had ended
    assert [evaluations_since(best, 30, 10) for best in (0, 10, 20, 25, 30)] == [3, 2, 1, 1, 0]


@pytest.mark.parametrize(
    ("changes", "why"), [({"max_iters": 3}, "max_iters"), ({"max_minutes": 1e-9, "eval_interval": 0}, "max_minutes")]
)
def test_the_log_says_why_a_run_ended(tiny, tmp_path: Path, changes: dict, why: str) -> None:
    train(tiny(**changes))
    assert read_log(tmp_path / "run")[-1]["because"] == why


def test_the_best_checkpoint_is_noted_though_its_process_was_killed_before(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, LOSSES)
    settings = {"eval_interval": 5, "always_save_checkpoint": False, "keep_checkpoints": 1}
    train(tiny(**settings, max_iters=15))
    note = tmp_path / "run" / "checkpoints" / "best.json"
    note.write_text('{"step": 5, "val_loss": 2.0}\n')  # as it was when the checkpoint of step 15 was there at last
    train(gpt2.resume_config(tmp_path / "run", max_iters=30))
    assert json.loads(note.read_text()) == {"step": 15, "val_loss": 1.9}
    assert saved_steps(tmp_path / "run") == [30, 15]


def test_a_loss_that_is_no_number_is_never_the_best(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, {0: float("nan"), 5: 2.0, 10: float("nan")})
    train(tiny(eval_interval=5, max_iters=10))
    assert best_step(tmp_path / "run") == 5


def test_a_best_evaluation_without_a_checkpoint_is_not_noted(tiny, tmp_path: Path, monkeypatch) -> None:
    """The first evaluation, of weights that are not saved, is never beaten."""
    script(monkeypatch, {0: 1.0, 5: 2.0, 10: 3.0})
    train(tiny(eval_interval=5, max_iters=10))
    assert best_step(tmp_path / "run") is None
    model, _ = gpt2.load(tmp_path / "run")
    assert model.get_num_params(non_embedding=False) > 0


def test_a_gpu_recomputes_activations_only_where_they_do_not_fit() -> None:
    """The 124M model on GPUs of 80, 40 and 24 GB, and on a CPU, with 64 sequences of 1,024 tokens."""
    config, shape = TrainConfig(batch_size=64, block_size=1024, dtype="bfloat16").resolved(), GPTConfig()
    found = {size: training_memory(config, shape, Sharing(), "cuda", size * 10**9) for size in (80, 40, 24)}
    assert [recomputes for _, recomputes in found.values()] == [False, False, True]
    assert found[80][0] == found[40][0]
    assert found[24][0].activations < 0.7 * found[40][0].activations
    assert found[40][0].total < 0.9 * 40e9
    assert training_memory(config, shape, Sharing(), "cpu", 10**12)[1]


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        ({"max_iters": 1000, "lr_decay_iters": 2000}, True),
        ({"max_iters": 2000, "lr_decay_iters": 2000}, False),
        ({"max_iters": 1000}, False),
        ({"max_iters": 10**6, "max_tokens": 1000 * 12 * 1024, "lr_decay_iters": 2000}, True),
        ({"max_iters": 10**6, "max_tokens": 2000 * 12 * 1024, "lr_decay_iters": 2000}, False),
        ({"max_iters": 1000, "lr_decay_iters": 2000, "decay_lr": False}, False),
        ({"max_iters": 1000, "lr_decay_iters": 2000, "lr_schedule": "constant"}, False),
    ],
)
def test_a_run_that_ends_before_its_schedule_is_told(settings: dict, is_told: bool) -> None:
    lines: list[str] = []
    config = TrainConfig(**settings)
    last = last_step(config, 1, TrainState(), lambda line: None)
    log_late_decay(config.resolved(last), last, lines.append)
    assert [("step 2000" in line and "--lr_decay_iters=auto" in line) for line in lines] == [True] * is_told


def test_a_learning_rate_that_rises_is_told(tiny, tmp_path: Path, capfd) -> None:
    """A resumed run keeps min_lr, a tenth of its first peak, which a smaller peak may be below."""
    told = "because min_lr=0.001 is above learning_rate=0.0001; --min_lr=1e-05 lets it fall"
    train(tiny(max_iters=4))
    assert "rises" not in capfd.readouterr().err
    again = {"learning_rate": 1e-4, "max_iters": 8, "lr_decay_iters": "auto"}
    train(gpt2.resume_config(tmp_path / "run", **again))
    assert told in capfd.readouterr().err
    assert [r["lr"] for r in read_log(tmp_path / "run") if r["event"] == "train"][-1] > 1e-4
    for change in ({"min_lr": 1e-5}, {"decay_lr": False}, {"lr_schedule": "constant"}):
        train(gpt2.resume_config(tmp_path / "run", **{**again, "max_iters": 9} | change))
        assert "rises" not in capfd.readouterr().err
