"""Sweeps: every combination is trained once, whatever interrupts it, and noise is not called a result."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from runs import curve, final_weights

from gpt2.bench.sweep import Combination, Sweep, parse_grid, run_sweep, rungs
from gpt2.bench.sweep_console import SweepConsole
from gpt2.bench.sweep_table import described, remark
from gpt2.errors import UserError
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

TINY = "--batch_size=2 --block_size=16 --n_layer=1 --n_head=2 --n_embd=8 --eval_iters=1 --device=cpu --no-compile"


def flags(dataset: Path, *more: str) -> list[str]:
    return ["sweep", f"--dataset={dataset}", *TINY.split(), "--dtype=float32", "--max_iters=12", *more]


def last_loss(run: Path) -> float:
    return [r["val_loss"] for r in read_log(run) if r["event"] == "eval"][-1]


def test_a_grid_with_seeds_becomes_a_table_a_picture_and_run_folders(dataset, tmp_path: Path, gpt2_command) -> None:
    line = flags(dataset, "--grid=learning_rate=1e-3,1e-2", "--grid", "optimizer=adamw,muon", "--seeds=2")
    status, out, err = gpt2_command(*line, f"--out={tmp_path / 's'}")
    assert status == 0, err
    assert out.splitlines()[0].split() == ["learning_rate", "optimizer", "val", "loss", "spread", "steps", "time"]
    assert len(out.split("\n\n")[0].splitlines()) == 5
    assert (tmp_path / "s" / "plot.png").stat().st_size > 10_000
    runs = sorted(p for p in (tmp_path / "s").iterdir() if p.is_dir())
    assert len(runs) == 8
    assert err.count("val loss") == 8 and "eta" in err and "step 3/12" not in err
    assert gpt2_command("report", *runs, f"--out={tmp_path / 'r.html'}")[0] == 0

    logs = [(run / "log.jsonl").read_bytes() for run in runs]
    status, out, err = gpt2_command(*line, "--json", f"--out={tmp_path / 's'}")
    entries = json.loads(out)
    assert [(run / "log.jsonl").read_bytes() for run in runs] == logs  # nothing was trained again
    for entry in entries:
        losses = [last_loss(Path(run)) for run in entry["runs"]]
        assert entry["val_loss"] == sum(losses) / 2
        assert entry["spread"] == max(losses) - min(losses)
    assert [e["val_loss"] for e in entries] == sorted(e["val_loss"] for e in entries)

    line = [*line, "--min_lr=0", f"--out={tmp_path / 's'}"]
    status, out, err = gpt2_command(*line)
    assert status == 2 and "holds a sweep with min_lr=None, not 0.0" in err


def test_a_run_that_diverges_is_a_row_of_the_table(dataset, tmp_path: Path, gpt2_command) -> None:
    line = flags(dataset, "--grid=learning_rate=1e-3,1000", "--max_iters=25", "--weight_decay=1000", "--seeds=2")
    status, out, err = gpt2_command(*line, f"--out={tmp_path / 's'}")
    assert status == 0, err
    rows = out.splitlines()
    assert rows[1].startswith("0.001") and rows[1].endswith("best")
    assert re.match(r"1000 +– .* failed: 10 steps in a row were skipped, from step \d+ on$", rows[2])
    assert "All combinations" not in out


def test_what_a_run_says_about_its_learning_rate_is_said_once_by_a_sweep(dataset, tmp_path, gpt2_command) -> None:
    grid = ("--grid=learning_rate=1e-4,1e-2", "--grid=weight_decay=0,0.1", "--max_iters=2")
    status, _, err = gpt2_command(*flags(dataset, *grid), "--min_lr=1e-3", f"--out={tmp_path / 's'}")
    assert status == 0
    assert err.count("because min_lr=0.001 is above learning_rate=0.0001; --min_lr=1e-05 lets it fall") == 1
    assert err.count("rises") == 1 and "decays until" not in err
    _, _, err = gpt2_command(*flags(dataset, *grid), "--lr_decay_iters=9", f"--out={tmp_path / 't'}")
    assert err.count("the learning rate decays until step 9 (lr_decay_iters), and the run ends before that") == 1


@pytest.fixture
def make(tiny, tmp_path: Path):
    """Makes a sweep over three learning rates."""

    def make_sweep(name: str = "sweep", **changes) -> Sweep:
        rates = changes.pop("rates", [1e-3, 1e-2, 3e-3])
        return Sweep(tiny(**changes), {"learning_rate": rates}, [1], tmp_path / name, halving=changes.pop("h", 0))

    return make_sweep


def test_a_sweep_that_was_stopped_continues_and_ends_as_if_it_was_not(make) -> None:
    trained = []

    def stopped_in_the_second_run(config: TrainConfig, *, callback):
        def listen(event, step, values):
            callback(event, step, values)
            if len(trained) == 2 and event == "train" and step == 7:
                os.kill(os.getpid(), signal.SIGINT)

        trained.append(config.out_dir)
        return train(config, callback=listen)

    whole = run_sweep(make("whole"), SweepConsole())
    assert whole is not None
    assert run_sweep(make(), SweepConsole(), stopped_in_the_second_run) is None
    assert len(trained) == 2
    resumed = run_sweep(make(), SweepConsole(), stopped_in_the_second_run)
    assert resumed is not None
    assert trained[2:] == [trained[1], trained[1].replace("0.01", "0.003")]
    assert [c.losses for c in resumed] == [c.losses for c in whole]


def test_halving_resumes_the_best_and_gives_the_weights_of_a_complete_run(make, tiny, tmp_path: Path) -> None:
    sweep = Sweep(tiny(max_iters=27), {"learning_rate": [1e-4, 1e-3, 1e-2]}, [1], tmp_path / "sweep", halving=3)
    found = run_sweep(sweep, SweepConsole())
    assert found is not None
    assert [c.trained for c in found] == [9, 9, 27]
    best = tmp_path / "sweep" / "learning_rate=0.01,seed=1"
    steps = [r["step"] for r in read_log(best) if r["event"] == "train"]
    assert steps == list(range(1, 28))
    assert [r["step"] for r in read_log(best) if r["event"] == "resume"] == [9]
    complete = train(tiny(max_iters=27, learning_rate=1e-2, seed=1, out_dir=str(tmp_path / "complete"))).out_dir
    assert final_weights(best) == final_weights(complete)
    assert [r for r in curve(best) if r[0] == "train"] == [r for r in curve(complete) if r[0] == "train"]
    again = run_sweep(sweep, SweepConsole())
    assert again is not None and [c.rungs for c in again] == [c.rungs for c in found]


def test_rungs_keep_the_best_part() -> None:
    assert rungs(9, 3) == [9, 3, 1]
    assert rungs(8, 2) == [8, 4, 2, 1]
    assert rungs(6, 0) == [6]
    assert rungs(4, 3) == [4, 1]


def combination(rate: float, *rung_losses: list[float], problem: str = "") -> Combination:
    made = Combination({"learning_rate": rate}, TrainConfig(), 100, problem=problem)
    for losses in rung_losses:
        made.losses = dict(enumerate(losses))
        made.rungs.append((made.mean, made.spread))
    made.trained = 10 * len(rung_losses)
    return made


def test_differences_within_the_spread_of_seeds_are_marked() -> None:
    best = combination(1e-3, [2.0, 2.2])
    near, far = combination(3e-3, [2.2, 2.25]), combination(1e-2, [2.5, 2.51])
    found = [far, near, best]
    assert [remark(c, found) for c in found] == ["", "not distinguishable from the best", "best"]
    text = described(Sweep(TrainConfig(), {"learning_rate": [1e-3, 3e-3, 1e-2]}, [0, 1], Path("s")), found)
    assert "1 other combination is within the spread of 2 seeds of it" in text
    assert "learning_rate=0.001 is the smallest that was tried; a smaller one may be better" in text


def test_one_combination_is_the_best_of_nothing() -> None:
    text = described(
        Sweep(TrainConfig(), {"learning_rate": [1e-3]}, [0, 1], Path("s")), [combination(1e-3, [2.0, 2.2])]
    )
    assert "best" not in text and "lowest" not in text
    assert "loss of --learning_rate=0.001 is 2.1000 over 2 seeds, with a spread of 0.2000." in text


def test_one_seed_is_not_called_a_result() -> None:
    text = described(
        Sweep(TrainConfig(), {"learning_rate": [1e-3, 1e-2]}, [0], Path("s")),
        [combination(1e-3, [2.0]), combination(1e-2, [2.1])],
    )
    assert "One seed does not show how large the noise is" in text and "spread" not in text.splitlines()[0]


def test_a_combination_that_halving_stopped_by_chance_is_marked() -> None:
    went_on = combination(1e-3, [3.0, 3.4], [2.0, 2.1])
    close, worse = combination(3e-3, [3.3, 3.35]), combination(1e-2, [4.0, 4.1])
    found = [went_on, close, worse]
    assert remark(close, found) == "stopped at step 10, not distinguishable there from one that went on"
    assert remark(worse, found) == "stopped at step 10"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([], "there is nothing to vary"),
        (["learning_rate"], "write it as learning_rate=1e-3,3e-3"),
        (["learnin_rate=1"], "did you mean learning_rate?"),
        (["learning_rate=fast"], "it must be a number"),
        (["n_layer=1.5"], "it must be a whole number"),
        (["bias=maybe"], "it must be true or false"),
        (["optimizer=sgd"], "choose from adamw, muon"),
        (["seed=1,2"], "--seeds"),
        (["bias=true", "--bias=false"], "twice"),
    ],
)
def test_a_mistake_in_a_grid_is_explained(grid: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse_grid(grid)


def test_values_have_the_types_of_their_settings() -> None:
    assert parse_grid(["--n-layer=1,2", "bias=True,no", "learning_rate=1e-3,0.001,1", "muon_iterations=3"]) == {
        "n_layer": [1, 2],
        "bias": [True, False],
        "learning_rate": [0.001, 1.0],
        "muon_iterations": [3],
    }


def test_a_folder_with_something_else_is_refused(make, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty, and holds no sweep"):
        run_sweep(make(), SweepConsole())
