"""Losses are those of a reference in float64, with any windows, batches and number of processes."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import environment

from gpt2.api import evaluate
from gpt2.chat import with_speakers
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.data.shards import Tokens
from gpt2.errors import UserError
from gpt2.evaluation.choices import Task, choose
from gpt2.evaluation.loss import Loss, Window, blocks, evaluate_loss, measure, sliding
from gpt2.formats.open import load
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, train_bpe
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

CONFIG = GPTConfig(block_size=8, vocab_size=50, n_layer=2, n_head=2, n_embd=16)


def reference(model: GPT, ids: list[int]) -> list[float]:
    """Compute the loss of each token of a sequence except the first, by the formulas, in float64 with numpy."""
    p = {name: tensor.detach().double().numpy() for name, tensor in model.named_parameters()}
    c = model.config

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    T = len(ids) - 1
    x = p["transformer.wte.weight"][ids[:-1]] + p["transformer.wpe.weight"][:T]
    for layer in range(c.n_layer):
        name = f"transformer.h.{layer}"
        q, k, v = np.split(linear(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn"), 3, axis=-1)
        heads = []
        for head in np.split(np.arange(c.n_embd), c.n_head):
            scores = q[:, head] @ k[:, head].T / math.sqrt(len(head))
            heads.append(softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf)) @ v[:, head])
        x = x + linear(np.concatenate(heads, -1), f"{name}.attn.c_proj")
        h = linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"{name}.mlp.c_proj")
    probabilities = softmax(norm(x, "transformer.ln_f") @ p["transformer.wte.weight"].T)
    return [-math.log(probabilities[t, ids[t + 1]]) for t in range(T)]


class Array:
    """Stands for a shard whose tokens are in memory."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids, self.count = ids, len(ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.ids[start:stop]


def some_tokens(count: int) -> Tokens:
    ids = np.random.default_rng(0).integers(0, 50, count).astype("<u2")
    return Tokens([Array(shard) for shard in np.array_split(ids, 3)])  # type: ignore[list-item]


def a_model() -> GPT:
    torch.manual_seed(1)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("stride", [8, 3, 1])
def test_every_token_is_predicted_once_as_the_reference_does(stride: int) -> None:
    model, tokens = a_model(), some_tokens(61)
    expected: list[list[float]] = [[] for _ in range(8)]
    done = 0
    for end in sorted({8, *range(8, 60, stride), 60}):
        losses = reference(model, tokens[end - 8 : end + 1].tolist())
        for position in range(8 - (end - done), 8):
            expected[position].append(losses[position])
        done = end
    result = measure(model.double(), tokens, sliding(61, 8, stride), block_size=8, batch_size=5, dtype="float32")
    assert result.counts.tolist() == [len(losses) for losses in expected]
    for mean, losses in zip(result.by_position, expected, strict=True):
        assert mean == pytest.approx(np.mean(losses), abs=1e-9) if losses else mean is None
    assert result.mean == pytest.approx(np.mean(np.concatenate(expected)), abs=1e-9)
    assert result.ids.tolist() == np.bincount(tokens[1:61], minlength=50).tolist()


def test_a_runs_evaluation_is_the_references_mean_over_its_blocks() -> None:
    model, tokens = a_model(), some_tokens(100)
    starts = [w.start for w in blocks(tokens, 8, 6)]
    assert starts == [0, 16, 32, 48, 64, 80]
    losses = [reference(model, tokens[s : s + 9].tolist()) for s in starts]
    settings = {"block_size": 8, "batch_size": 2, "batches": 3, "dtype": "float32"}
    assert evaluate_loss(model.double(), tokens, **settings) == pytest.approx(np.mean(losses), abs=1e-9)
    assert evaluate_loss(model.float(), tokens, **settings) == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_is_without_dropout_and_leaves_the_mode(training: bool) -> None:
    model, tokens = GPT(replace(CONFIG, dropout=0.5)), some_tokens(41)
    model.load_state_dict(a_model().state_dict())
    model.train(training)
    losses = [reference(model, tokens[start : start + 9].tolist()) for start in range(0, 40, 8)]
    loss = evaluate_loss(model, tokens, block_size=8, batch_size=2, batches=0, dtype="float32")
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert model.training == training


def test_an_evaluation_during_training_does_not_use_tf32() -> None:
    """Otherwise a checkpoint would have another loss there than in `gpt2 eval`, and other HellaSwag choices."""
    model, seen = a_model(), []
    model.transformer.h[0].register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        evaluate_loss(model, some_tokens(20), block_size=8, batch_size=1, batches=1, dtype="float32")
        choose(model, [Task([1, 2], [[3], [4]], [1, 1], 0)], dtype="bfloat16")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) == 3  # of a batch, and of the tasks twice, as the choices are those of float32
    assert set(seen) == {"highest"}


def test_bits_per_byte_counts_no_bytes_for_end_of_text() -> None:
    ids = np.bincount([97, 97, 98, 256], minlength=257)  # "aab" and an end-of-text
    loss = Loss(np.array([6 * math.log(2)]), np.array([4]), ids)
    assert loss.bits_per_byte(ByteTokenizer()) == pytest.approx(2.0)
    assert replace(loss, ids=np.bincount([256], minlength=257)).bits_per_byte(ByteTokenizer()) is None


def test_windows() -> None:
    assert sliding(9, 8, 8) == [Window(0, 0)]
    assert sliding(20, 8, 8) == [Window(0, 0), Window(8, 0), Window(11, 5)]
    assert sliding(13, 8, 2) == [Window(0, 0), Window(2, 6), Window(4, 6)]
    assert sliding(14, 8, 2) == [Window(0, 0), Window(2, 6), Window(4, 6), Window(5, 7)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("loss") / "run"
    shape = {"block_size": 16, "n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 4, "max_iters": 2}
    train(TrainConfig(dataset=str(dataset), out_dir=str(out), device="cpu", dtype="float32", compile=False, **shape))
    return out


def test_the_command(run: Path, dataset: Path, gpt2_command, tmp_path: Path) -> None:
    arguments = ("eval", "loss", run, dataset, "--json", "--device=cpu", "--dtype=float32")
    status, out, _ = gpt2_command(*arguments, "--tokens=1001", "--stride=7", "--plot", tmp_path / "p.png")
    assert status == 0
    figures = json.loads(out)
    model, _ = load(str(run))
    tokens = open_dataset(str(dataset), "data", print).split("val", 16)
    result = measure(model, tokens, sliding(1002, 16, 7), block_size=16, batch_size=3, dtype="float32")
    assert figures["loss"] == pytest.approx(result.mean, abs=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(result.mean), rel=1e-6)
    assert figures["tokens"] == 1001
    assert figures["bits_per_byte"] == pytest.approx(result.mean / math.log(2), rel=1e-6)  # ASCII characters
    assert len(figures["by_position"]) == 16
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_bits_per_byte_counts_the_bytes_of_the_text(tmp_path: Path, gpt2_command) -> None:
    """A model of zeros gives every token the same probability, so that the figures are known."""
    (tmp_path / "a.txt").write_text("äöü€ " * 400)  # 10 bytes, 5 characters
    data = prepare(tmp_path / "a.txt", out=tmp_path / "d", tokenizer="char", val_fraction=0.5)
    shape = {"block_size": 16, "n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 1, "max_iters": 0}
    out = tmp_path / "run"
    train(TrainConfig(dataset=str(data), out_dir=str(out), device="cpu", dtype="float32", compile=False, **shape))
    model, _ = load(str(out))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    dataset = open_dataset(str(data), "data", print)
    tokens = dataset.split("val", 16)
    result = measure(model, tokens, sliding(len(tokens), 16, 16), block_size=16, batch_size=4, dtype="float32")
    text = dataset.tokenizer.decode_bytes(tokens[1 : len(tokens)].tolist())
    assert result.mean == pytest.approx(math.log(5), rel=1e-6)
    expected = math.log2(5) * (len(tokens) - 1) / len(text)
    assert result.bits_per_byte(dataset.tokenizer) == pytest.approx(expected, rel=1e-6)


def test_further_special_tokens_matter_only_where_the_text_has_them(tmp_path: Path, gpt2_command) -> None:
    text = tmp_path / "t.txt"
    text.write_text("hello world, hello again. " * 40)
    plain = train_bpe([text.read_text()], 262)
    prepare(text, out=tmp_path / "plain", tokenizer=plain)
    prepare(text, out=tmp_path / "more", tokenizer=with_speakers(plain))
    text.write_text("hello world, hello again. " * 40 + "<|user|>hello<|assistant|>")
    prepare(text, out=tmp_path / "chat", tokenizer=with_speakers(plain))
    shape = {"block_size": 16, "n_layer": 1, "n_head": 1, "n_embd": 8, "batch_size": 1, "max_iters": 0}
    config = TrainConfig(dataset=str(tmp_path / "plain"), out_dir=str(tmp_path / "base"), device="cpu", **shape)
    train(config)
    losses = [evaluate(tmp_path / "base", tmp_path / name, device="cpu").loss for name in ("plain", "more")]
    assert losses[0] == losses[1]
    assert evaluate(tmp_path / "base", tmp_path / "chat", tokens=40, device="cpu").tokens == 40  # no speaker in these
    status, _, err = gpt2_command("eval", "loss", tmp_path / "base", tmp_path / "chat")
    assert (status, err.count("\n")) == (2, 1)
    assert (
        "chat has special tokens that " in err and "lacks (<|assistant|>, <|user|>); gpt2 train --init_from=" in err
    )
    with pytest.raises(UserError, match=re.escape("lacks (<|system|>, <|user|>, <|assistant|>); gpt2 train")):
        train(replace(config, dataset=str(tmp_path / "chat"), init_from="resume"))


@pytest.mark.parametrize("nproc", [int(n) for n in os.environ.get("GPT2_TEST_WORLDS", "2").split(",")])
def test_several_processes_give_the_same_figures(nproc: int, run: Path, dataset: Path, gpt2_command) -> None:
    arguments = [
        *("eval", "loss", str(run), str(dataset)),
        *("--json", "--device=cpu", "--tokens=1001", "--dtype=float32", "--batch_size=5"),
    ]
    alone = gpt2_command(*arguments)[1]
    done = subprocess.run(
        [sys.executable, "-m", "gpt2", *arguments, f"--nproc={nproc}"],
        env=environment(run),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    one, several = json.loads(alone), json.loads(done.stdout)
    assert one["by_position"] == pytest.approx(several["by_position"], rel=1e-6)
    assert one["loss"] == pytest.approx(several["loss"], rel=1e-9)
    assert one["tokens"] == several["tokens"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stride=17", "more than the model's context of 16"),
        ("--tokens=0", "at least 1"),
        ("--plot=x", "end in .png"),
    ],
)
def test_wrong_input(flag: str, message: str, run: Path, dataset: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("eval", "loss", run, dataset, "--device=cpu", flag)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
