"""Training from a notebook: a model of the caller's, and a function that receives every record."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import final_weights
from torch import Tensor

import gpt2
from gpt2.errors import UserError
from gpt2.model import GPT, GPTConfig
from gpt2.runlog.records import read_log
from gpt2.training.loop import train

SHAPE = GPTConfig(block_size=16, vocab_size=20, n_layer=2, n_head=2, n_embd=16)


class Squared(torch.nn.Module):
    """An MLP with the square of ReLU in place of GELU."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.c_fc, self.c_proj = mlp.c_fc, mlp.c_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(torch.relu(self.c_fc(x)) ** 2)


def changed_model(seed: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(SHAPE)
    for block in model.transformer.h:
        block.mlp = Squared(block.mlp)
    return model


@pytest.fixture
def settings(tiny, dataset: Path) -> Any:
    vocabulary = gpt2.data.dataset.open_dataset(str(dataset)).tokenizer.vocab_size
    assert vocabulary == SHAPE.vocab_size, "the toy text has another vocabulary now"
    return lambda **changes: tiny(n_layer=None, n_head=None, n_embd=None, **changes)


def test_a_model_of_the_callers_is_trained_in_place(settings, tmp_path: Path) -> None:
    model = changed_model(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = train(settings(max_iters=30), model=model)
    assert result.val_loss is not None and result.val_loss < 2.7  # ln 20 is 3.0
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters() if p.dim() > 1)
    saved = torch.frombuffer(bytearray(final_weights(tmp_path / "run")), dtype=torch.uint8)
    assert len(saved) > 4 * sum(p.numel() for p in model.parameters())


def test_a_resumed_run_continues_with_the_callers_layers(settings, tmp_path: Path) -> None:
    train(settings(max_iters=20, out_dir=str(tmp_path / "whole")), model=changed_model(0))
    train(settings(max_iters=10, lr_decay_iters=20, warmup_iters=1), model=changed_model(0))
    train(settings(max_iters=20, init_from="resume"), model=changed_model(1))  # its weights are replaced
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_a_model_that_does_not_fit_is_refused(settings, tmp_path: Path) -> None:
    for changes, message in (({"block_size": 8}, "block_size=16, not 8"), ({"n_layer": 5}, "n_layer=2, not 5")):
        with pytest.raises(UserError, match=f"the given model has {message}"):
            train(
                settings() if not changes else settings().__class__(**settings().as_dict() | changes),
                model=GPT(SHAPE),
            )
    with pytest.raises(UserError, match="the given model has only 5 "):
        train(settings(), model=GPT(GPTConfig(block_size=16, vocab_size=5, n_layer=1, n_head=1, n_embd=8)))
    assert not (tmp_path / "run").exists()


def test_a_callback_receives_every_record(tiny, tmp_path: Path) -> None:
    received: list[tuple[str, int, dict[str, Any]]] = []
    train(tiny(max_iters=4, eval_interval=2), callback=lambda *record: received.append(record))
    logged = read_log(tmp_path / "run")
    assert [(event, step) for event, step, _ in received] == [(r["event"], r["step"]) for r in logged]
    losses = [values["loss"] for event, _, values in received if event == "train"]
    assert losses == [r["loss"] for r in logged if r["event"] == "train"]


def test_a_callback_that_raises_ends_the_run_which_is_saved(tiny, tmp_path: Path) -> None:
    def enough(event: str, step: int, values: dict[str, Any]) -> None:
        if event == "train" and step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(eval_interval=0), callback=enough)
    assert (tmp_path / "run" / "checkpoints" / "step_0000007").is_dir()


class Gated(torch.nn.Module):
    """An MLP with one more matrix."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.c_fc, self.c_proj, self.gate = mlp.c_fc, mlp.c_proj, torch.nn.Linear(16, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x) * torch.sigmoid(self.gate(x)))


def gated_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    for block in model.transformer.h:
        block.mlp = Gated(block.mlp)
    return model


@pytest.mark.parametrize("make", [lambda: changed_model(0), gated_model], ids=["same weights", "more weights"])
def test_a_run_of_other_layers_is_not_taken_for_a_gpt(settings, tmp_path: Path, make: Any) -> None:
    """Neither by a resume without the model, nor by what opens models."""
    train(settings(max_iters=3), model=make())
    with pytest.raises(UserError, match=r"has layers of its own; resume it with gpt2\.train\(config, model=…\)"):
        train(settings(max_iters=5, init_from="resume"))
    with pytest.raises(UserError, match="is of a model with layers of its own"):
        gpt2.load(tmp_path / "run")
    with pytest.raises(UserError, match="has layers of its own, which no file format holds"):
        gpt2.export(make(), "hf", tmp_path / "out")
    assert train(settings(max_iters=5, init_from="resume"), model=make()).step == 5


def test_a_checkpoint_with_other_parameters_is_refused(settings, tmp_path: Path) -> None:
    train(settings(max_iters=3), model=gated_model())
    with pytest.raises(UserError, match=r"only one of them has transformer\.h\.0\.mlp\.gate\.bias"):
        train(settings(max_iters=5, init_from="resume"), model=changed_model(0))


def test_a_plain_model_of_the_callers_is_a_gpt_like_any_other(settings, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = GPT(SHAPE)
    train(settings(max_iters=3), model=model)
    loaded, tokenizer = gpt2.load(tmp_path / "run")
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    assert gpt2.export(model, "hf", tmp_path / "out", tokenizer=tokenizer).difference < 1e-6
    assert train(settings(max_iters=5, init_from="resume")).step == 5


@pytest.mark.parametrize("method", ["head", "forward"])
def test_methods_that_training_does_not_call_are_refused(settings, method: str) -> None:
    other = type("Other", (GPT,), {method: lambda self, *arguments: None})
    with pytest.raises(UserError, match=f"has its own {method}, but the loss is computed from `hidden`"):
        train(settings(), model=other(SHAPE))


def test_a_model_in_evaluation_mode_is_trained_with_dropout(settings) -> None:
    losses = []
    for is_training in (True, False):
        torch.manual_seed(0)
        model = GPT(GPTConfig(**vars(SHAPE) | {"dropout": 0.5})).train(is_training)
        losses.append(train(settings(max_iters=3, overwrite=True), model=model).train_loss)
    assert losses[0] == losses[1]


def test_settings_that_contradict_the_model_are_refused(settings) -> None:
    for changes in ({"dropout": 0.2}, {"init_from": "gpt2"}):
        with pytest.raises(UserError, match=r"(the|a) given model"):
            train(settings(**changes), model=GPT(SHAPE))


def test_records_after_a_callback_that_raises_have_the_true_speed(tiny, tmp_path: Path) -> None:
    def once(event: str, step: int, values: dict[str, Any]) -> None:
        if event == "train" and step == 5:
            raise ValueError("enough")

    with pytest.raises(UserError):
        train(tiny(eval_interval=0, log_interval=20), callback=once)
    rates = {r["tokens_per_second"] for r in read_log(tmp_path / "run") if r["event"] == "train"}
    assert len(rates) == 1  # all 20 steps were measured together


class LowRank(torch.nn.Module):
    """A linear layer that stays, and a product of two small matrices that learn (LoRA, as in docs/library.md)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.randn(2, linear.in_features))
        self.b = torch.nn.Parameter(torch.zeros(linear.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + (x @ self.a.T) @ self.b.T


def adapted_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(replace(SHAPE, bias=False)).requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn = LowRank(block.attn.c_attn)
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_parameters_without_gradients_stay(settings, tmp_path: Path, optimizer: str) -> None:
    """Also over a resume; weight decay does not touch them. The model has no biases, and nothing has to say so."""
    changes = {"optimizer": optimizer, "weight_decay": 0.5, "lr_decay_iters": 20, "warmup_iters": 0}
    whole = adapted_model()
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    result = train(settings(**changes, max_iters=20, out_dir=str(tmp_path / "whole")), model=whole)
    for name, p in whole.named_parameters():
        assert torch.equal(before[name], p) is not p.requires_grad, name
    assert result.val_loss is not None and result.val_loss < 2.995
    train(settings(**changes, max_iters=10), model=adapted_model())
    train(settings(**changes, max_iters=20, init_from="resume"), model=adapted_model())
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")
