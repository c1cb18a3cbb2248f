import re
import tomllib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.model import PRESETS
from gpt2.training.config import HINTS, TrainConfig
from gpt2.training.recipes import dump_toml, load_recipe, names, parse_toml


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_a_configuration(name: str) -> None:
    TrainConfig(**load_recipe(name)).resolved()


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_gpt2_recipes_train_half_a_million_tokens_per_step(name: str) -> None:
    config = TrainConfig(**load_recipe(name)).resolved()
    assert config.tokens_per_step == 524_288
    assert (config.n_layer, config.n_embd) == (PRESETS[name]["n_layer"], PRESETS[name]["n_embd"])
    assert (config.warmup_iters, config.max_iters) == (715, 19_073)


def test_total_batch_size_sets_the_accumulation() -> None:
    config = TrainConfig(batch_size=4, block_size=8, total_batch_size=96)
    assert (config.accumulation, config.tokens_per_step) == (3, 96)
    assert TrainConfig(batch_size=4, block_size=8, gradient_accumulation_steps=5).tokens_per_step == 160
    assert TrainConfig(batch_size=4, block_size=8).accumulation == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 4, "block_size": 8, "total_batch_size": 100}, "nearest that are: 96 or 128"),
        ({"batch_size": 4, "block_size": 8, "total_batch_size": 20}, "nearest that are: 32"),
        (
            {"batch_size": 4, "block_size": 8, "total_batch_size": 96, "gradient_accumulation_steps": 2},
            "give only one",
        ),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1.5}, "batch_size is 1.5 .float.; it must be int"),
        ({"batch_size": "8"}, "must be int"),
        ({"compile": 1}, "must be bool"),
        ({"n_layer": 0}, "n_layer"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"beta2": 1.0}, "beta2"),
        ({"dtype": "int8"}, "dtype is 'int8'; choose from auto"),
        ({"lr_schedule": "nonsense"}, "choose from cosine"),
        ({"model": "gpt5"}, "gpt5"),
        ({"max_iters": 10, "warmup_iters": 20}, "warmup_iters=20"),
        ({"wsd_decay_fraction": 0.0}, "wsd_decay_fraction"),
        ({"grad_clip": float("inf")}, "grad_clip is inf"),
        ({"seed": 2**63}, "seed"),
        ({"out_dir": "\udcff"}, "not valid text"),
        ({"zero_stage": 2}, "choose from 0, 1"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_epochs": -0.5}, "max_epochs is -0.5"),
        ({"early_stopping_patience": -1}, "early_stopping_patience is -1"),
        ({"early_stopping_patience": 2, "eval_interval": 0}, "eval_interval=0 makes none before the end"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"sample_start": 3}, "sample_start is 3"),
        ({"sample_start": ()}, "must be a text or a list of texts"),
        ({"sample_start": ["a", 3]}, "must be a text or a list of texts"),
        ({"sample_start": ["a", "\udcff"]}, "not valid text"),
        ({"align_documents": True, "data_order": "shuffled"}, "data_order=shuffled shows every token once"),
        ({"align_documents": True, "data_order": "sequential"}, "use --data_order=random or --align_documents=False"),
        ({"optimizer": "muon", "parallel": "fsdp", "cpu_offload": True}, "leave --cpu_offload out"),
    ],
)
def test_contradictions_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


def test_an_int_is_accepted_as_a_float() -> None:
    config = TrainConfig(learning_rate=1, dropout=0)
    assert (config.learning_rate, type(config.learning_rate), type(config.dropout)) == (1.0, float, float)


def test_paths_and_numpy_numbers_are_accepted() -> None:
    config = TrainConfig(out_dir=Path("x"), learning_rate=np.float64(0.5))
    assert (config.out_dir, type(config.learning_rate)) == ("x", float)


@pytest.mark.parametrize("name", ["out_dir", "data_dir", "init_from"])
def test_an_empty_path_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is empty; give a path"):
        TrainConfig(**{name: ""})
    assert TrainConfig(dataset="", hellaswag_data="").dataset == ""


def test_the_sizes_are_those_of_the_model() -> None:
    assert get_args(HINTS["model"]) == tuple(PRESETS)


def test_defaults_depend_on_other_settings() -> None:
    config = TrainConfig(max_iters=1000, learning_rate=1e-3).resolved()
    assert (config.lr_decay_iters, config.warmup_iters, config.min_lr) == (1000, 50, 1e-4)
    assert (config.n_layer, config.n_head, config.n_embd) == (12, 12, 768)
    assert TrainConfig(model="d24", n_layer=3).resolved().n_layer == 3


def test_toml_round_trip() -> None:
    config = TrainConfig(
        out_dir='a "b" \\ ü 😀\n\x7f\x1f', min_lr=1e-7, compile=False, sample_start=["a\n", "ü"]
    ).resolved()
    text = dump_toml(config.as_dict())
    assert tomllib.loads(text) == config.as_dict()
    assert TrainConfig(**parse_toml(text, "x")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise = 3", "did you mean batch_size"),
        ("batch_size =", "not valid TOML"),
        ("[a]\nb=1", "no setting 'a'"),
    ],
)
def test_bad_toml_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_toml(text, "recipe.toml")


def test_unknown_recipes_are_explained() -> None:
    with pytest.raises(UserError, match="did you mean shakespeare_char"):
        load_recipe("shakespeare_chr")


@pytest.mark.parametrize("steps", [5, 50, 99])
def test_a_warmup_of_a_recipe_that_is_too_long_is_refused_with_the_default_to_give(steps: int) -> None:
    recipe = load_recipe("gpt2") | {"max_iters": steps}
    with pytest.raises(UserError) as refusal:
        TrainConfig(**recipe)
    (given,) = re.findall(r"give --warmup_iters=(\d+), or train longer$", str(refusal.value))
    assert TrainConfig(max_iters=steps).resolved().warmup_iters == int(given)
    assert TrainConfig(**recipe | {"warmup_iters": int(given)}).max_iters == steps


def test_the_warmup_of_own_text_is_that_of_its_length() -> None:
    recipe = load_recipe("own_text")
    assert TrainConfig(**recipe).resolved().warmup_iters == 100
    assert TrainConfig(**recipe | {"max_iters": 50}).resolved().warmup_iters == 2
