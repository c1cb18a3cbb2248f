"""A loss far above those before it: back to the last checkpoint, and past the batch that gave it."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import curve, final_weights

from gpt2.chunked_loss import TrainingLoss
from gpt2.data import batches as batches_module
from gpt2.errors import UserError
from gpt2.runlog.records import read_log
from gpt2.training import loop
from gpt2.training.loop import train
from gpt2.training.spikes import is_spike
from gpt2.training.timing import device_clock, phase_seconds, straggler

SETTINGS = {"max_iters": 60, "checkpoint_interval": 20, "eval_interval": 0, "keep_checkpoints": 0}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has batches exchanged for others, and the loss of some be twenty times what it is."""
    compute, starts, now = TrainingLoss.forward, batches_module.sample_starts, [0]

    def arrange(spoiled: Callable[[int], bool], other: Callable[[int], int] = lambda n: n) -> None:
        def watched(lengths, block_size, order, seed, step, *more):
            now[0] = step
            return starts(lengths, block_size, order, seed, other(step), *more)

        def spoiling(self: TrainingLoss, *arguments: object, **named: object) -> torch.Tensor:
            return compute(self, *arguments, **named) * (20 if spoiled(now[0]) else 1)

        monkeypatch.setattr(batches_module, "sample_starts", watched)
        monkeypatch.setattr(TrainingLoss, "forward", spoiling)

    return arrange


def test_the_batch_of_a_spike_is_passed_over(tiny, batches, tmp_path: Path) -> None:
    batches(spoiled=lambda n: n == 45)
    for max_iters in (60, 43, 50, 60):  # whole, then in parts: one ends within what is done again
        name = "whole" if not (tmp_path / "whole").exists() else "parts"
        changes = {**SETTINGS, "max_iters": max_iters, "lr_decay_iters": 60, "warmup_iters": 3}
        train(tiny(**changes, out_dir=str(tmp_path / name), rollback_on_spike=10, init_from="auto"))
    [told] = [r for r in read_log(tmp_path / "whole") if r["event"] == "resume"]
    assert (told["step"], told["skipped_batches"]) == (40, 6)
    assert "step 46 · the loss is" in told["because"]
    assert [r["step"] for r in read_log(tmp_path / "whole") if r["event"] == "train"] == list(range(1, 61))

    batches(spoiled=lambda n: False, other=lambda n: n + 6 if n >= 40 else n)
    train(tiny(**SETTINGS, lr_decay_iters=60, warmup_iters=3, out_dir=str(tmp_path / "without")))
    assert final_weights(tmp_path / "whole") == final_weights(tmp_path / "without")
    assert curve(tmp_path / "whole")[-1] == curve(tmp_path / "without")[-1]
    # the checkpoint of step 43, where one part ended, is not gone back to: a run in one go does not have it
    assert [
        r["skipped_batches"]
        for r in read_log(tmp_path / "parts")
        if r["event"] == "resume" and "skipped_batches" in r
    ] == [6]
    assert final_weights(tmp_path / "parts") == final_weights(tmp_path / "whole")


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("stops", [[41], [43, 44], [46], [40, 45, 58]])
def test_a_stop_changes_nothing_about_spikes(
    keep: int, stops: list[int], tiny, batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by signals before, between and after two spikes, one of them among the batches that are done again."""
    batches(spoiled=lambda n: n in (45, 52))
    settings = {**SETTINGS, "keep_checkpoints": keep, "rollback_on_spike": 10, "init_from": "auto"}
    train(tiny(**settings, out_dir=str(tmp_path / "whole")))
    events = [r for r in read_log(tmp_path / "whole") if r["event"] == "resume"]
    assert [r["step"] for r in events] == [40, 40]
    # first the batches 40 to 45, then without these the seven up to 52
    assert [r["skipped_batches"] for r in events] == [6, 13]

    step, left = loop.train_step, list(stops)

    def stopping(run):
        if left and run.state.step == left[0] - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            left.pop(0)
        return step(run)

    monkeypatch.setattr(loop, "train_step", stopping)
    for _ in stops:
        assert train(tiny(**settings)).stopped
    assert not train(tiny(**settings)).stopped
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")
    assert [r for r in curve(tmp_path / "run") if r[0] == "train"] == [
        r for r in curve(tmp_path / "whole") if r[0] == "train"
    ]


def test_the_limit_of_returns_holds_across_stops(
    tiny, batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches(spoiled=lambda n: n >= 45)
    settings = {**SETTINGS, "keep_checkpoints": 1, "rollback_on_spike": 10, "init_from": "auto"}
    step, returned = loop.train_step, [0]

    def stopping(run):
        if run.state.returns > returned[0]:  # once after each return
            returned[0] = run.state.returns
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run)

    monkeypatch.setattr(loop, "train_step", stopping)
    for _ in range(2):
        assert train(tiny(**settings)).stopped
    with pytest.raises(UserError, match=r"again after 3 returns to .*step_0000040"):
        train(tiny(**settings))


def test_time_does_not_go_back_with_the_weights(tiny, batches) -> None:
    batches(spoiled=lambda n: n == 45)
    clock: list[float] = []

    class Watched(loop.StepRecords):
        def write(self) -> None:
            super().write()
            clock.append(self.session.run.state.seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "StepRecords", Watched)
        train(tiny(**SETTINGS, rollback_on_spike=10))
    assert len(clock) == 66
    assert all(a < b for a, b in itertools.pairwise(clock))


def test_going_back_again_and_again_ends_the_run(tiny, batches, tmp_path: Path) -> None:
    batches(spoiled=lambda n: n >= 45)
    with pytest.raises(UserError, match=r"again after 3 returns to .*step_0000040; go on with .* --learning_rate"):
        train(tiny(**SETTINGS, rollback_on_spike=10))


def test_without_a_checkpoint_the_run_goes_on(tiny, batches, tmp_path: Path, capsys) -> None:
    batches(spoiled=lambda n: n == 35)
    train(tiny(**SETTINGS | {"checkpoint_interval": 0, "max_iters": 40}, rollback_on_spike=10, log_interval=40))
    assert "no checkpoint yet to go back to" in capsys.readouterr().err
    assert [r["step"] for r in read_log(tmp_path / "run") if r["event"] == "train"] == list(range(1, 41))


def test_what_a_spike_is() -> None:
    recent = [3.0, 5.0] * 20  # mean 4, standard deviation 1
    assert is_spike(recent, 7.1, 3)
    assert not is_spike(recent, 6.9, 3)
    assert not is_spike(recent[:31], 100.0, 3)


def test_what_a_straggler_is() -> None:
    assert straggler([1.0, 1.0, 1.6, 1.1]) == (2, 1.6)
    assert straggler([1.0, 1.0, 1.4, 1.1]) is None
    assert straggler([2.0, 1.0]) == (0, 2.0)
    assert straggler([2.0]) is None


def test_time_is_split_into_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 11.0, 13.0, 14.0, 18.0])
    monkeypatch.setattr("gpt2.training.timing.time.perf_counter", lambda: next(ticks))
    clock = device_clock(torch.device("cpu"))
    marks = [(phase, clock()) for phase in ("", "data", "forward", "data", "forward")]
    assert phase_seconds(marks) == {"data": 2.0, "forward": 6.0}
