"""`gpt2 sample`: several samples, stop strings, log-probabilities, JSON, and a conversation."""

import io
import json
from pathlib import Path

import pytest
import torch

from gpt2.formats import safetensors_file
from gpt2.formats.source import Extras
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = GPT(GPTConfig(block_size=16, vocab_size=257, n_layer=1, n_head=2, n_embd=32))
    safetensors_file.write(network, Extras(ByteTokenizer(), "m", "float32", print), tmp_path / "m.safetensors")
    return str(tmp_path / "m.safetensors")


def samples(gpt2_command, model: str, *flags: str) -> dict:
    status, out, err = gpt2_command("sample", model, "--start=ab", "--max_new_tokens=6", *flags, "--json")
    assert status == 0, err
    return json.loads(out)


def test_samples_are_printed_in_order_as_each_would_be_alone(model: str, gpt2_command) -> None:
    together = samples(gpt2_command, model, "--num_samples=3", "--seed=5")
    alone = [samples(gpt2_command, model, f"--seed={seed}")["samples"][0] for seed in (5, 6, 7)]
    assert together["samples"] == alone
    assert len({sample["text"] for sample in alone}) == 3
    status, out, _ = gpt2_command("sample", model, "--start=ab", "--max_new_tokens=6", "--num_samples=3", "--seed=5")
    assert status == 0
    assert out == "".join(f"ab{sample['text']}\n---------------\n" for sample in alone)


def test_a_sample_ends_before_a_stop_string(model: str, gpt2_command) -> None:
    text = samples(gpt2_command, model, "--temperature=0")["samples"][0]["text"]
    found = samples(gpt2_command, model, "--temperature=0", "--stop=nothing", "--stop", text[2:4])["samples"][0]
    assert (found["text"], found["ending"]) == (text[: text.index(text[2:4])], "stop")


def test_log_probabilities(model: str, gpt2_command) -> None:
    sample = samples(gpt2_command, model, "--temperature=0", "--logprobs=2")["samples"][0]
    assert len(sample["tokens"]) == 6
    for token in sample["tokens"]:
        assert token["top"][0] == {key: token[key] for key in ("id", "text", "logprob")}, "the likeliest is taken"
        assert token["top"][1]["logprob"] <= token["logprob"] < 0
    status, out, _ = gpt2_command(
        "sample", model, "--start=ab", "--max_new_tokens=6", "--logprobs=2", "--temperature=0"
    )
    assert (status, out.count("\n")) == (0, 9), "the prompt, a line for each token, and a line of dashes"


def test_a_conversation_ends_with_the_input(model: str, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\n\udcff\ncd\n"))
    status, out, err = gpt2_command("sample", model, "--interactive", "--max_new_tokens=3")
    assert status == 0
    assert out.count("---------------") == 2
    assert "not valid text" in err


def test_ctrl_c_ends_a_text_and_not_the_program(model: str, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2.generation.engine import Engine

    steps = []

    def step(self: Engine, original=Engine.step) -> list:
        steps.append(None)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd\n"))
    status, out, _ = gpt2_command("sample", model, "--interactive", "--max_new_tokens=3")
    assert (status, out.count("---------------")) == (0, 2)
    assert len(steps) > 3


def test_speed_is_printed_on_request(model: str, gpt2_command) -> None:
    status, _, err = gpt2_command("sample", model, "--max_new_tokens=3", "--stats", "--quantize=int8")
    assert status == 0
    assert "3 tokens: the first after" in err
    assert "GB/s" in err


def test_the_prompt_may_come_from_a_file(model: str, gpt2_command, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("ab")
    from_file = gpt2_command("sample", model, f"--start=FILE:{tmp_path / 'prompt.txt'}", "--max_new_tokens=6")
    assert from_file == gpt2_command("sample", model, "--start=ab", "--max_new_tokens=6")


def test_the_cost_of_int8_can_be_measured(tiny, gpt2_command, tmp_path: Path, monkeypatch) -> None:
    from gpt2.training.loop import train

    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="run", max_iters=1))
    losses = []
    for quantize in ("none", "int8"):
        line = ["eval", "loss", "run", tiny().dataset, f"--quantize={quantize}", "--device=cpu", "--dtype=float32"]
        status, out, err = gpt2_command(*line, "--json")
        assert status == 0, err
        losses.append(json.loads(out)["loss"])
    assert 0 < abs(losses[1] - losses[0]) < 0.01
