"""`gpt2 show` and `gpt2 train … --print_config`: all settings, where a run stands, and what to do next."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from gpt2.bench.sweep import RECORD
from gpt2.runlog.records import LogWriter
from gpt2.training.config import TrainConfig
from gpt2.training.filled_in import filled_in
from gpt2.training.loop import train
from gpt2.training.recipes import load_recipe, names, parse_toml


@pytest.mark.parametrize("recipe", names())
def test_the_settings_of_a_recipe_are_a_recipe_for_the_same_run(recipe: str, gpt2_command) -> None:
    status, out, err = gpt2_command("show", recipe)
    assert status == 0, err
    given, shown = TrainConfig(**load_recipe(recipe)), parse_toml(out, "shown")
    assert filled_in(TrainConfig(**shown)) == filled_in(given)
    assert f"gpt2 train {recipe}" in out


def test_settings_that_differ_from_what_follows_come_first(gpt2_command) -> None:
    words = ["--max_iters=100", "--learning_rate=1e-2", "--min_lr=1e-3", "--warmup_iters=7", "--max_tokens=5242880"]
    status, out, err = gpt2_command("train", "gpt2", "--model=d6", *words, "--dataset=nowhere", "--print_config")
    assert status == 0, err
    changed, _, rest = out.partition("# Defaults:")
    changed, rest = tomllib.loads(changed), tomllib.loads(rest)
    assert (changed["max_iters"], changed["model"], changed["learning_rate"]) == (100, "d6", 0.01)
    assert changed["warmup_iters"] == 7
    assert changed["dataset"] == "nowhere"
    assert (rest["n_layer"], rest["n_embd"], rest["min_lr"], rest["gelu"]) == (6, 384, 1e-3, "tanh")
    assert not changed.keys() & rest.keys()


def test_what_the_data_or_a_model_decides_stays_open(gpt2_command) -> None:
    status, out, _ = gpt2_command("train", "--dataset=x", "--max_epochs=2", "--init_from=gpt2", "--print_config")
    settings = tomllib.loads(out)
    assert status == 0
    assert (
        not {
            "lr_decay_iters",
            "warmup_iters",
            "eval_interval",
            "eval_iters",
            "n_layer",
            "n_head",
            "n_embd",
            "vocab_size",
        }
        & settings.keys()
    )
    status, out, _ = gpt2_command("train", "--dataset=x", "--max_tokens=122880", "--print_config", "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["settings"]["lr_decay_iters"], found["settings"]["max_iters"]) == (10, 600_000)
    assert found["changed"] == ["max_tokens", "dataset"]


def test_a_wrong_setting_is_a_mistake_with_print_config_too(gpt2_command) -> None:
    assert gpt2_command("train", "gpt2", "--batch_size=0", "--print_config")[0] == 2


def test_a_run_shows_where_it_stands_and_the_next_command(tiny, gpt2_command) -> None:
    run = train(tiny()).out_dir
    status, out, err = gpt2_command("show", run)
    assert status == 0, err
    head = out.partition("# Differs")[0]
    assert "finished" in head
    assert "steps: 20 (of 20)" in head
    assert f"gpt2 sample {run}" in head
    assert f"gpt2 train --init_from=resume --out_dir={run} --max_iters=40 --lr_decay_iters=auto" in head
    assert tomllib.loads(out)["n_embd"] == 16
    with LogWriter(run) as log:
        log.write("end", 20, stopped=True, because="error", error="the disk is full\n# at night")
    out = gpt2_command("show", run)[1]
    assert "failed: the disk is full" in out
    assert f"go on with it: gpt2 train --init_from=resume --out_dir={run}\n" in out
    assert tomllib.loads(out)["n_embd"] == 16
    found = json.loads(gpt2_command("show", run, "--json")[1])
    assert (found["kind"], found["run"]["step"], found["settings"]["max_iters"]) == ("run", 20, 20)
    shutil.rmtree(run / "checkpoints")
    out = gpt2_command("show", run)[1]
    assert f"it has no checkpoint; start again: gpt2 train {run}/config.toml --overwrite" in out


def test_commands_quote_a_folder_with_a_space(tiny, dataset: Path, tmp_path: Path, gpt2_command) -> None:
    run = train(tiny(out_dir=str(tmp_path / "my run"))).out_dir
    out = gpt2_command("show", run)[1]
    assert out.count(f"'{run}'") == 3
    shutil.copytree(dataset, tmp_path / "my data")
    assert f"gpt2 train --dataset='{tmp_path / 'my data'}'" in gpt2_command("show", tmp_path / "my data")[1]


def test_a_dataset_is_found_by_path_and_by_name_and_a_recipe_comes_first(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "data/mine")
    shutil.copytree(dataset, "data/shakespeare_char")
    for name in ("mine", "data/mine"):
        found = json.loads(gpt2_command("show", name, "--json")[1])
        assert (found["kind"], found["dataset"]["tokenizer"]) == ("dataset", "char")
    out = gpt2_command("show", "mine")[1]
    assert "train on it: gpt2 train --dataset=data/mine" in out
    out = gpt2_command("show", "shakespeare_char")[1]
    assert "the dataset of this name: gpt2 show data/shakespeare_char" in out
    status, _, err = gpt2_command("show", "shakespear_char")
    assert status == 2
    assert "did you mean shakespeare_char?" in err


def test_train_alone_says_what_it_can_do(gpt2_command) -> None:
    status, out, err = gpt2_command("train")
    assert (status, out) == (2, "")
    assert 3 <= len(err.splitlines()) <= 4
    assert all(text in err for text in ("gpt2 train shakespeare_char_cpu", "--dataset=", "--init_from=resume"))


def test_a_folder_that_is_neither_run_nor_dataset_is_named(tiny, tmp_path: Path, gpt2_command) -> None:
    run = train(tiny()).out_dir
    assert gpt2_command("export", "hf", run, tmp_path / "hf")[0] == 0
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / RECORD).write_text("{}")
    for folder, text in (
        (run / "checkpoints", f"inside of the run {run}: gpt2 show {run}"),
        (run / "checkpoints" / "step_0000020", f"inside of the run {run}: gpt2 show {run}"),
        (tmp_path / "sweep", "the folder of a sweep"),
        (tmp_path / "hf", f"a model: gpt2 explain {tmp_path / 'hf'}"),
    ):
        status, _, err = gpt2_command("show", folder)
        assert status == 2
        assert f"{folder} is {text}" in err
