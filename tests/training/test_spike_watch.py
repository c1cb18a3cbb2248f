"""What spikes are judged by, and the accounts of a run that goes back to a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2.checkpoint import TrainState
from gpt2.errors import UserError
from gpt2.formats.run_folder import folder_of, read_description
from gpt2.runlog.records import read_log
from gpt2.training.loop import train
from gpt2.training.spikes import SpikeWatch, is_spike
from gpt2.training.timing import Ledger

SETTINGS = {"max_iters": 60, "checkpoint_interval": 20, "eval_interval": 0, "keep_checkpoints": 0}


@pytest.fixture
def spikes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the losses of some updates count as spikes: given their step and the updates left out before."""

    def arrange(are: Callable[[int, int], bool]) -> None:
        judge = SpikeWatch.is_spike

        def told(self: SpikeWatch, loss: float) -> bool:
            judge(self, loss)
            return are(self.run.state.step, self.run.state.skipped_batches)

        monkeypatch.setattr(SpikeWatch, "is_spike", told)

    return arrange


def test_32_losses_are_enough_to_judge_by() -> None:
    assert not is_spike([3.0] * 31, 100.0, 3)
    assert is_spike([3.0] * 32, 100.0, 3)


def test_all_recent_losses_count() -> None:
    recent = [2.0, 6.0] * 16 + [3.0, 5.0] * 16  # mean 4, variance (4 + 1) / 2
    assert not is_spike(recent, 4 + 3 * 2.5**0.5 - 0.01, 3)
    assert is_spike(recent, 4 + 3 * 2.5**0.5 + 0.01, 3)


def test_the_last_128_losses_are_kept_without_the_spikes() -> None:
    run = SimpleNamespace(config=SimpleNamespace(rollback_on_spike=3.0), state=TrainState())
    watch = SpikeWatch(SimpleNamespace(run=run, log=None, console=None))
    losses = [3 + i % 7 / 10 for i in range(200)]
    for loss in losses:
        assert not watch.is_spike(loss)
        if len(run.state.recent_losses) >= 32:
            assert watch.is_spike(50.0)
    assert run.state.recent_losses == losses[-128:]


def test_steps_without_a_token_that_has_a_loss_do_not_count() -> None:
    run = SimpleNamespace(state=TrainState(), config=SimpleNamespace(rollback_on_spike=3.0))
    watch = SpikeWatch(SimpleNamespace(run=run, log=None, console=None))
    assert not any(watch.is_spike(loss) for loss in [0.0] * 40 + [5.0, 0.0] * 40)
    assert run.state.recent_losses == [5.0] * 40
    assert watch.is_spike(9.0)


def test_batches_left_out_and_time_add_up(tiny, tmp_path: Path, spikes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back from step 25 to 20, and from 45 to 40. Each update counts as a second, also when it is done again."""
    monkeypatch.setattr(Ledger, "steps", lambda self, phases: float(len(phases)))
    spikes(lambda step, left_out: (step, left_out) in ((25, 0), (45, 5)))
    train(tiny(**SETTINGS, rollback_on_spike=1000))
    resumes = [(r["step"], r["skipped_batches"]) for r in read_log(tmp_path / "run") if r["event"] == "resume"]
    assert resumes == [(20, 5), (40, 10)]
    state = read_description(folder_of(tmp_path / "run", 60))
    assert (state["skipped_batches"], state["seconds"]) == (10, 70.0)


def test_a_run_goes_back_to_a_checkpoint_three_times(tiny, tmp_path: Path, spikes) -> None:
    spikes(lambda step, left_out: step == 25)
    with pytest.raises(UserError, match="again after 3 returns"):
        train(tiny(**SETTINGS, rollback_on_spike=1000))
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert log.count('"event": "resume"') == 3
    assert log.count('"event": "train", "step": 25,') == 4
