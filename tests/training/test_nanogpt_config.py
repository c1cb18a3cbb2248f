import time
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.training.config import TrainConfig
from gpt2.training.nanogpt_config import DEFAULTS, read
from gpt2.training.recipes import load_recipe

FINETUNE = """
import time

out_dir = 'out-shakespeare'
eval_interval = 5
wandb_run_name = 'ft-' + str(time.time())
dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2 model
batch_size = 1
gradient_accumulation_steps = 4 * 8
learning_rate = 3e-5
decay_lr = False
min_lr = learning_rate / 10
"""


def test_a_config_file_is_read_as_data() -> None:
    values = read(FINETUNE, "config.py")
    assert values.pop("wandb_run_name").startswith("ft-1")
    assert "gelu" not in values  # nanoGPT computes erf with OpenAI's weights too, which were trained with tanh
    assert values | {"gelu": "erf"} == DEFAULTS | {
        "out_dir": "out-shakespeare",
        "eval_interval": 5,
        "dataset": "shakespeare",
        "init_from": "gpt2-xl",
        "batch_size": 1,
        "gradient_accumulation_steps": 32,
        "learning_rate": 3e-5,
        "decay_lr": False,
        "min_lr": 3e-5 / 10,
    }
    TrainConfig(**values)


def test_an_omitted_setting_has_nanogpts_default() -> None:
    config = TrainConfig(**read("", "config.py")).resolved()
    assert config.tokens_per_step == 491_520
    assert (config.bias, config.gelu, config.dataset) == (False, "erf", "openwebtext")
    assert (config.warmup_iters, config.lr_decay_iters, config.min_lr) == (2000, 600_000, 6e-5)


def test_nanogpts_character_config_with_its_cpu_flags_equals_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "train_shakespeare_char.py"
    path.write_text(
        "out_dir = 'out-shakespeare-char'\neval_interval = 250\neval_iters = 200\nlog_interval = 10\n"
        "always_save_checkpoint = False\nwandb_log = False\nwandb_project = 'shakespeare-char'\n"
        "wandb_run_name = 'mini-gpt'\ndataset = 'shakespeare_char'\ngradient_accumulation_steps = 1\n"
        "batch_size = 64\nblock_size = 256\nn_layer = 6\nn_head = 6\nn_embd = 384\ndropout = 0.2\n"
        "learning_rate = 1e-3\nmax_iters = 5000\nlr_decay_iters = 5000\nmin_lr = 1e-4\nbeta2 = 0.99\n"
        "warmup_iters = 100\n"
    )
    converted = load_recipe(str(path))
    flags = {
        "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 100, "block_size": 64,
        "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000,
        "lr_decay_iters": 2000, "dropout": 0.0,
    }  # fmt: skip
    trackers = {"wandb_project": "x", "wandb_run_name": "x"}
    settled = {"gradient_accumulation_steps": 1, "sample_interval": 0, "sample_tokens": 200}  # nanoGPT writes none
    assert TrainConfig(**converted | flags | trackers) == TrainConfig(
        **load_recipe("shakespeare_char_cpu") | settled | trackers
    )
    assert TrainConfig(**converted | trackers) == TrainConfig(**load_recipe("shakespeare_char") | settled | trackers)


def test_an_auxiliary_name_is_not_a_setting() -> None:
    values = read("k = 2\nmax_iters = k * 5", "c.py")
    assert values == DEFAULTS | {"max_iters": 10}


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "__import__('os').system('touch pwned')",
        "max_iters = open('x')",
        "max_iters = [1][0]",
        "max_iters = 9 ** 9 ** 9",
        "max_iters = undefined",
        "max_iters = 1 / 0",
        "out_dir = 'a' * 1000000000000",
        "out_dir = '%1000000000d' % 1",
        "out_dir = f'{1}'",
        "a = b = 1",
        "if True: max_iters = 1",
        "max_iters = (",
        "def f(): pass",
        "\0",
    ],
)
def test_other_statements_are_refused_with_their_line_and_not_executed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"c\.py, line"):
        read("batch_size = 1\n" + line, "c.py")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("batch_sise = 3")
    with pytest.raises(UserError, match="did you mean batch_size"):
        load_recipe(str(tmp_path / "c.py"))


@pytest.mark.parametrize(
    "text",
    [
        "a = 'xxxxxxxxxxxxxxxx'\n" + "a = a + a\n" * 27,
        "a = 1000000007\n" + "a = a * a\n" * 24,
        "a = 1.5\n" + "a = a * a\n" * 24 + "b = a / 0.0",
        "a = " + "9" * 5_000,
        "a = 0x" + "f" * 5_000,
        "a = " + "+".join(["1"] * 5_000),
        "a = " + "-" * 20_000 + "1",
        "a = " + "(" * 20_000 + "1",
        "a = " + "[" * 150 + "]" * 150,
        "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 200)),
        "# " + "x" * 200_000,
    ],
)
def test_a_file_that_would_fill_the_memory_or_the_stack_is_refused_at_once(text: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"c\.py(, line \d+:| has more than)") as raised:
        read(text, "c.py")
    assert len(str(raised.value)) < 300
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        "max_iters = " + "9" * 5_000,
        "max_iters = 0x" + "f" * 5_000,
        "max_iters = " + "9" * 30,
        "max_iters = " + "[" * 20_000,
        "max_iters = " + "{a=" * 20_000,
        ".".join(["a"] * 20_000) + " = 1",
        "[" + ".".join(["a"] * 20_000) + "]",
        "x = {" + ".".join(["a"] * 20_000) + " = 1}",
        "max_iters = [" + "1, " * 20_000 + "]",
        "x" * 50_000 + " = 1",
        "# " + "x" * 200_000,
    ],
)
def test_a_recipe_beyond_all_bounds_is_refused_at_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"r\.toml") as raised:
        load_recipe(str(tmp_path / "r.toml"))
    assert len(str(raised.value)) < 1_000
    assert time.monotonic() - start < 2
