"""Losses against their definition in float64, and the lens against the model and against each layer by itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from varied import CONFIG, varied

from gpt2.errors import UserError
from gpt2.inside import predictions
from gpt2.inside.attention import attention_weights
from gpt2.inside.predictions import logit_lens, losses
from gpt2.model import GPT


@torch.no_grad()
def logits_of(model: GPT, text: Tensor) -> np.ndarray:
    return model.eval()(text[None], text[None])[0][0].double().numpy()  # (T, V)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture(autouse=True)
def few_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "ROWS", 15)
    monkeypatch.setattr(predictions, "CACHED_ROWS", 2)
    monkeypatch.setattr(predictions, "CACHED_EMBEDDINGS", 20)


def test_losses_ranks_and_entropies_are_those_of_the_definition(model: GPT, text: Tensor) -> None:
    found = losses(model, text, k=4)
    assert model.training
    probs = softmax(logits_of(model, text))
    assert found.top_ids.shape == found.top_log_probs.shape == (24, 4)
    for t in range(24):
        assert float(found.entropy[t]) == pytest.approx(-(probs[t] * np.log(probs[t])).sum(), abs=1e-5)
        likeliest = sorted(range(53), key=lambda i: -probs[t, i])[:4]
        assert found.top_ids[t].tolist() == likeliest
        assert found.top_log_probs[t].tolist() == pytest.approx(np.log(probs[t, likeliest]).tolist(), abs=1e-5)
    for t in range(23):
        own = probs[t, text[t + 1]]
        assert float(found.loss[t]) == pytest.approx(-math.log(own), abs=1e-5)
        assert int(found.rank[t]) == 1 + sum(p > own for p in probs[t])
    assert len(found.loss) == len(found.rank) == 23


def test_equal_tokens_share_the_best_rank_and_dropout_is_off(text: Tensor) -> None:
    model = varied(replace(CONFIG, dropout=0.5))
    assert torch.equal(losses(model, text).loss, losses(varied(), text).loss)
    model.transformer.ln_f.weight.data.zero_()
    model.transformer.ln_f.bias.data.zero_()
    assert losses(model, text).rank.tolist() == [1] * 23


def test_the_mean_loss_is_that_of_the_model(model: GPT, text: Tensor) -> None:
    mean = losses(model, text).loss.mean().item()
    assert mean == pytest.approx(model.eval()(text[None, :-1], text[None, 1:])[1].item(), abs=1e-6)


def test_the_lens_of_the_last_layer_is_the_model(model: GPT, text: Tensor) -> None:
    lens, own = logit_lens(model, text, k=3), losses(model, text, k=3)
    assert torch.equal(lens.last.rank, lens.layers.rank[-1])
    assert lens.layers.top_ids.shape == (3, 24, 3)
    for name, values in vars(own).items():
        assert torch.allclose(vars(lens.layers)[name][-1], values, atol=1e-5), name
    assert torch.equal(lens.kl[-1], torch.zeros(24))
    assert bool((lens.kl[:-1] > 1e-3).all())


@torch.no_grad()
def test_the_lens_of_a_layer_is_a_model_that_ends_there(model: GPT, text: Tensor) -> None:
    lens = logit_lens(model, text, k=2)
    last = softmax(logits_of(model, text))
    for layer in range(3):
        short = GPT(replace(CONFIG, n_layer=layer + 1))
        short.load_state_dict({k: v for k, v in model.state_dict().items() if k in short.state_dict()})
        probs = softmax(logits_of(short, text))
        assert lens.layers.top_ids[layer, :, 0].tolist() == probs.argmax(axis=1).tolist()
        kl = (last * np.log(last / probs)).sum(axis=1)
        assert lens.kl[layer].tolist() == pytest.approx(kl.tolist(), abs=1e-4)
        own = probs[np.arange(23), text[1:]]
        assert lens.layers.log_prob[layer].tolist() == pytest.approx(np.log(own).tolist(), abs=1e-5)
        ranks = 1 + (probs[:-1] > own[:, None]).sum(axis=1)
        assert lens.layers.rank[layer].tolist() == ranks.tolist()


def test_few_logits_exist_at_a_time(model: GPT, text: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 5 positions in 3 layers; log-probabilities, of 2 positions in 1 layer."""
    sizes, rows, done = [], [], []
    computed, divided = predictions._logits, predictions._log_probs
    monkeypatch.setattr(predictions, "_logits", lambda m, h, out: (sizes.append(len(h)), computed(m, h, out))[1])
    monkeypatch.setattr(predictions, "_log_probs", lambda x: (rows.append(len(x)), divided(x))[1])
    logit_lens(model, text, progress=lambda *work: done.append(work))
    assert sizes == [15, 15, 15, 15, 12]
    assert set(rows) == {1, 2}
    assert done == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]


def test_a_text_has_a_least_and_a_largest_length(model: GPT) -> None:
    assert losses(model, torch.tensor([3])).loss.shape == (0,)
    for length, message in ((0, "0 tokens, and at least 1"), (25, "25 tokens, and the model sees 24")):
        with pytest.raises(UserError, match=message):
            losses(model, torch.zeros(length, dtype=torch.int64))


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: object) -> Tensor:
        return 2 * self.inner(*inputs)


def test_a_model_with_replaced_parts_is_refused_and_one_with_another_mlp_is_not(text: Tensor) -> None:
    for name in ("wte", "ln_f", "h.1", "h.2.ln_1", "h.0.attn", "h.0.attn.c_proj"):
        model = varied()
        net = model.transformer
        net.set_submodule(name, Doubled(net.get_submodule(name)))
        for read in (losses, logit_lens, lambda m, idx: attention_weights(m, idx[None])):
            with pytest.raises(UserError, match=f"^{name} of this model is Doubled and not"):
                read(model, text)
    model = varied()
    model.transformer.h[1].mlp = Doubled(model.transformer.h[1].mlp)
    lens = logit_lens(model, text)
    assert lens.layers.top_ids[-1].tolist() == losses(model, text).top_ids.tolist()


def test_a_model_without_finite_numbers_is_refused(model: GPT, text: Tensor) -> None:
    model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        losses(model, text)
