"""The benchmarks run what training runs. No test checks a speed."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2 import accounting
from gpt2.bench import data as data_bench
from gpt2.bench import sample as sample_bench
from gpt2.bench import train as train_bench
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.model import GPT, GPTConfig
from gpt2.runlog.records import read_log
from gpt2.training import timing


def test_training_is_measured_and_leaves_nothing(tiny, tmp_path: Path) -> None:
    config = tiny(gradient_accumulation_steps=3)
    speed = train_bench.measure(config, 4, lambda line: None)
    assert speed.tokens_per_step == 3 * 4 * 16
    assert speed.slowest <= speed.tokens_per_second <= speed.fastest
    assert set(speed.seconds) == {"data", "forward", "backward", "reduce", "optimizer"}
    assert speed.mfu_data_sheet is None
    assert 0 < speed.mfu_measured <= 1
    shape = GPTConfig(16, open_dataset(config.dataset).tokenizer.vocab_size, 2, 2, 16)
    assert speed.parameters == accounting.num_params(shape)
    assert not Path(config.out_dir).exists()


def test_the_phases_are_the_time_of_an_optimizer_step(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))  # a second passes whenever the time is taken
    for module in (train_bench, timing):
        monkeypatch.setattr(module, "time", clock)
    speed = train_bench.measure(tiny(gradient_accumulation_steps=3), 4, lambda line: None)
    # each of three micro-batches ends a phase of data, of forward and of backward
    assert speed.seconds == {"data": 3, "forward": 3, "backward": 3, "reduce": 1, "optimizer": 1}
    before_and_after = 2
    assert speed.tokens_per_step / speed.slowest == sum(speed.seconds.values()) + before_and_after


def test_without_a_dataset_the_model_keeps_its_size(tiny, tmp_path: Path) -> None:
    speed = train_bench.measure(tiny(dataset="", max_iters=7), 2, lambda line: None, tmp_path / "trace.json")
    assert speed.parameters == accounting.num_params(GPTConfig(16, 50257, 2, 2, 16))
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "aten::embedding" in names


def test_a_corpus_is_not_prepared_for_a_benchmark(tiny, tmp_path: Path) -> None:
    lines: list[str] = []
    asked = {"sample_interval": 1, "sample_start": "Hello", "hellaswag_interval": 1}  # of the recipe gpt2
    train_bench.measure(tiny(dataset="fineweb-edu", data_dir=str(tmp_path / "data"), **asked), 2, lines.append)
    assert lines[0] == "measuring on random tokens: there is no prepared dataset"
    assert not (tmp_path / "data").exists()


def test_an_existing_run_is_not_changed(tiny) -> None:
    from gpt2.training.loop import train

    config = tiny()
    train(config)
    before = read_log(Path(config.out_dir))
    train_bench.measure(tiny(init_from="resume"), 2, lambda line: None)
    assert read_log(Path(config.out_dir)) == before


def test_decoding_is_measured() -> None:
    model = GPT(GPTConfig(block_size=16, vocab_size=11, n_layer=1, n_head=1, n_embd=4))
    speed = sample_bench.measure(model, prompt_tokens=3, new_tokens=5, rounds=3)
    assert speed.slowest <= speed.tokens_per_second <= speed.fastest
    assert speed.bytes_per_second == pytest.approx(
        4 * model.get_num_params(non_embedding=False) * speed.tokens_per_second
    )
    with pytest.raises(UserError, match=r"prompt_tokens=12 and new_tokens=5 are more than the model's 16 positions"):
        sample_bench.measure(model, prompt_tokens=12, new_tokens=5, rounds=3)


def test_batches_are_measured(dataset: Path) -> None:
    tokens = open_dataset(str(dataset)).split("train", 16)
    speed = data_bench.measure(tokens, batch_size=4, block_size=16, steps=5, order="random")
    assert speed.tokens_per_second == pytest.approx(64 / speed.seconds)
    with pytest.raises(UserError, match="steps is 0"):
        data_bench.measure(tokens, batch_size=4, block_size=16, steps=0, order="random")


def test_the_commands_print_figures(tiny, gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2.training.loop import train

    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="run", max_iters=1))
    dataset = tiny().dataset
    flags = ["--n_layer=1", "--n_embd=32", "--n_head=1", "--block_size=16", f"--dataset={dataset}", "--device=cpu"]
    status, out, err = gpt2_command("bench", "train", "shakespeare_char_cpu", *flags, "--steps=2", "--json")
    assert status == 0, err
    assert json.loads(out)["tokens_per_step"] == 12 * 16  # the recipe's batch_size is 12
    status, out, _ = gpt2_command("bench", "train", "shakespeare_char_cpu", *flags, "--steps=2")
    assert (status, out.count("\n")) == (0, 4)
    assert "tokens/s (median of 2 optimizer steps; " in out
    status, out, _ = gpt2_command("bench", "sample", "run", "--prompt_tokens=2", "--new_tokens=3", "--json")
    assert status == 0
    assert json.loads(out)["speeds"][0]["tokens_per_second"] > 0
    status, out, _ = gpt2_command("bench", "data", dataset, "--block_size=16", "--steps=3")
    assert (status, "tokens/s · " in out) == (0, True)
    Path("trace.json").touch()
    for line, message in (
        (["bench", "train", *flags, "--steps=1"], "steps is 1; it must be at least 2"),
        (["bench", "train", *flags, "--trace=trace.json"], "trace.json already exists; choose another place"),
        (["bench", "sample", "random:gpt3"], "no model size 'gpt3'; choose from gpt2, "),
        (["bench", "data", dataset, "--batch_size=0"], "batch_size is 0; it must be at least 1"),
    ):
        status, out, err = gpt2_command(*line)
        assert (status, out) == (2, "")
        assert message in err
