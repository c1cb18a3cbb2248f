"""Updates whose loss or gradient is not finite change nothing, are told, and end a run when they go on."""

import math
import shlex
from collections.abc import Container
from pathlib import Path

import pytest
import torch

from gpt2.chunked_loss import TrainingLoss
from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.records import read_log
from gpt2.training import step as step_module
from gpt2.training.loop import train
from gpt2.training.recipes import run_settings
from gpt2.training.setup import set_up
from gpt2.training.step import train_step


def spoil(monkeypatch: pytest.MonkeyPatch, steps: Container[int]) -> None:
    """Have the loss of these updates, counted from 0, be no number."""
    compute, calls = TrainingLoss.forward, [0]

    def spoiled(self: TrainingLoss, *arguments: object, **named: object) -> torch.Tensor:
        calls[0] += 1
        return compute(self, *arguments, **named) * (math.nan if calls[0] - 1 in steps else 1)

    monkeypatch.setattr(TrainingLoss, "forward", spoiled)


def state_of(run) -> list[torch.Tensor]:
    moments = [value for o in run.optimizers for values in o.state.values() for value in values.values()]
    return [t.detach().clone() for t in (*run.model.parameters(), *moments)]


def test_a_gradient_that_is_not_finite_changes_nothing(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = set_up(tiny(warmup_iters=0), lambda line: None)
    assert not train_step(run).skipped
    before = state_of(run)
    run.state.step += 1
    clip = torch.nn.utils.clip_grad_norm_

    def spoiled(parameters, most):
        parameters = list(parameters)
        parameters[3].grad[0] = math.inf
        return clip(parameters, most)

    with monkeypatch.context() as patch:
        patch.setattr(step_module.torch.nn.utils, "clip_grad_norm_", spoiled)
        result = train_step(run)
    assert result.skipped
    assert torch.isfinite(result.loss)
    assert all(map(torch.equal, before, state_of(run)))
    assert not train_step(run).skipped
    assert not all(map(torch.equal, before, state_of(run)))


def test_skipped_updates_are_told_and_training_goes_on(tiny, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    spoil(monkeypatch, range(5, 8))
    config = tiny(max_iters=20, log_interval=4)
    result = train(config)
    assert result.step == 20
    log = read_log(Path(config.out_dir))
    skips = [r for r in log if r["event"] == "skip"]
    assert [r["step"] for r in skips] == [6, 7, 8]
    assert [r["loss"] for r in skips] == [None] * 3
    assert [len(r["rows"]) for r in skips] == [4] * 3
    assert [r["step"] for r in log if r["event"] == "train"] == [s for s in range(1, 21) if s not in (6, 7, 8)]
    assert all(math.isfinite(r["val_loss"]) for r in log if r["event"] == "eval")
    assert "step 6 · the loss is not finite: step skipped" in capfd.readouterr().err


def test_ten_in_a_row_end_the_run(tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpt2_command) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, range(12, 1000))
        config = tiny(max_iters=100, checkpoint_interval=5, eval_interval=0)
        message = r"10 steps in a row were skipped, from step 13 on; .*--init_from=resume.* --overfit_step=12$"
        with pytest.raises(UserError, match=message) as error:
            train(config)
    assert saved_steps(Path(config.out_dir))[0] == 20  # of weights that are good
    look = shlex.split(
        str(error.value).split("that batch with gpt2 ")[1]
    )  # has the settings of the run, and its batch
    status, _, err = gpt2_command(*look, f"--out_dir={tmp_path / 'replay'}", "--max_iters=1")
    assert status == 0, err
    assert run_settings(tmp_path / "replay")["block_size"] == config.block_size
    resumed = tiny(max_iters=25, checkpoint_interval=5, eval_interval=0, init_from="resume")
    assert train(resumed).step == 25


def test_the_line_that_ends_a_run_says_once_how_to_go_on(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, range(3, 1000))
    config = tiny(max_iters=100, checkpoint_interval=0, eval_interval=0)  # so that the steps before are not saved yet
    with pytest.raises(UserError, match=r"step 13 is saved$") as error:
        train(config)
    assert str(error.value).count("go on ") == str(error.value).count("--init_from=resume") == 1
    assert saved_steps(Path(config.out_dir)) == [13]


def test_nine_in_a_row_and_nine_more_do_not_end_the_run(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = {*range(1, 10), *range(11, 20)}
    spoil(monkeypatch, spoilt)
    config = tiny(max_iters=22, eval_interval=0, log_interval=4)
    assert train(config).step == 22
    log = read_log(Path(config.out_dir))
    assert {r["step"] - 1 for r in log if r["event"] == "skip"} == spoilt
