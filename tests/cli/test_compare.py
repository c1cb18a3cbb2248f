"""`gpt2 compare`: settings that differ, and figures with the best one marked."""

import json
import re
from pathlib import Path

import pytest

from gpt2.reporting.figures import report_on
from gpt2.reporting.page import page
from gpt2.runlog.records import LogWriter
from gpt2.training.recipes import dump_toml


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two logs whose figures are known: `a` trains on 100 tokens per step, `b` on 200."""
    evaluations = {"a": {0: 5.0, 10: 3.0, 20: 2.0, 30: 2.5}, "b": {0: 5.0, 10: 2.25, 20: 2.125}}
    for name, per_step, rate in (("a", 100, 50.0), ("b", 200, 80.0)):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"out_dir": name, "batch_size": per_step, "learning_rate": 1e-3, "prompt": "x"}
        (folder / "config.toml").write_text(dump_toml(settings))
        with LogWriter(folder) as log:
            log.write("start", 0, tokens=0, parameters=1234)
            for step in range(max(evaluations[name]) + 1):
                if step:
                    figures = {"loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "mfu": 0.1}
                    log.write("train", step, tokens=step * per_step, tokens_per_second=rate, **figures)
                if step in evaluations[name]:
                    loss = evaluations[name][step]
                    log.write("eval", step, train_loss=loss - 0.5, val_loss=loss)
            log.write("end", step, tokens=step * per_step, stopped=False)
    return [tmp_path / "a", tmp_path / "b"]


def test_figures_are_those_of_the_logs_at_the_same_step_and_tokens(runs: list[Path], gpt2_command) -> None:
    status, out, err = gpt2_command("compare", *runs, "--json")
    assert status == 0, err
    found = json.loads(out)
    a, b = found["runs"]
    assert (a["best_val_loss"], a["val_loss"], a["train_loss"], a["step"], a["tokens"]) == (2.0, 2.5, 2.0, 30, 3000)
    assert (found["same_step"], a["val_loss_at_same_step"], b["val_loss_at_same_step"]) == (20, 2.0, 2.125)
    assert (found["same_tokens"], a["val_loss_at_same_tokens"], b["val_loss_at_same_tokens"]) == (3000, 2.5, 2.25)
    best = {"best_val_loss": [0], "val_loss": [1], "train_loss": [1], "tokens_per_second": [1]}
    assert found["best"] == best | {"val_loss_at_same_step": [0], "val_loss_at_same_tokens": [1]}
    assert found["settings"] == {"batch_size": ["100", "200"]}
    assert (a["parameters"], b["path"]) == (1234, str(runs[1]))


def test_the_table_has_a_column_for_each_run_and_marks_the_best(runs: list[Path], gpt2_command) -> None:
    status, out, _ = gpt2_command("compare", *runs)
    assert status == 0
    assert out.split()[:2] == ["a", "b"]
    rows = {name: cells for name, *cells in (re.split(r" {2,}", line) for line in out.splitlines())}
    assert rows["best val loss"] == ["2.0000 *", "2.1250"]
    assert rows["val loss at 3k tokens"] == ["2.5000", "2.2500 *"]
    assert rows["tokens/s"] == ["50", "80 *"]
    assert rows["batch_size"] == ["100", "200"]


def test_a_run_without_settings_differs_from_no_other(runs: list[Path], gpt2_command) -> None:
    (runs[1] / "config.toml").unlink()
    assert json.loads(gpt2_command("compare", *runs, "--json")[1])["settings"] == {}
    html = page([report_on(run) for run in runs], {})
    assert "The settings of these runs are not known." in html


@pytest.mark.parametrize(("name", "value"), [("dataset", "other"), ("loss_after", "<|assistant|>")])
def test_losses_of_different_tokens_have_no_best(runs: list[Path], name: str, value: str, gpt2_command) -> None:
    with (runs[1] / "config.toml").open("a") as file:
        file.write(f'{name} = "{value}"\n')
    status, out, err = gpt2_command("compare", *runs, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["best"] == {"tokens_per_second": [1]}
    assert found["settings"][name] == ["–", f'"{value}"']


def test_long_or_equal_names_get_a_legend(runs: list[Path], tmp_path: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command("compare", runs[0], runs[0])
    assert status == 0
    assert "*" not in out
    long = tmp_path / ("b" * 60)
    runs[1].rename(long)
    status, out, _ = gpt2_command("compare", runs[0], long, runs[0])
    assert status == 0
    assert out.startswith(f"1  {runs[0]}\n2  {long}\n3  {runs[0]}\n\n")
    assert max(map(len, out.split("\n\n", 1)[1].splitlines())) < 80


def test_one_run_or_none_is_a_mistake(runs: list[Path], tmp_path: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("compare", runs[0])
    assert status == 2
    assert "name two or more" in err
    assert gpt2_command("compare", runs[0], tmp_path)[0] == 2
