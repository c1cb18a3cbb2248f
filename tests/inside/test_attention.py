"""Attention weights, compared with values written out from the definition, and with what the model computes."""

import math

import pytest
import torch

from gpt2.inside.attention import attention_weights, traced_weights
from gpt2.inside.forward import trace
from gpt2.model import GPT, GPTConfig

CONFIG = GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).double()
    for p in model.parameters():
        p.data.mul_(5)  # as initialized, attention is nearly even
    return model


def test_weights_are_those_of_the_definition(model: GPT) -> None:
    idx = torch.tensor([[1, 2, 3, 4, 5, 6]])
    weights = attention_weights(model, idx)
    assert weights.shape == (2, 1, 2, 6, 6)
    block = model.transformer.h[0]
    x = block.ln_1(model.transformer.wte(idx[0]) + model.transformer.wpe.weight[:6])  # (6, 8)
    qkv = x @ block.attn.c_attn.weight.T + block.attn.c_attn.bias
    for head in range(2):
        q, k = (qkv[:, start + 4 * head : start + 4 * head + 4] for start in (0, 8))
        for i in range(6):
            powers = [math.exp(float((q[i] @ k[j]).detach()) / 2) for j in range(i + 1)]
            expected = [p / sum(powers) for p in powers] + [0.0] * (5 - i)
            assert weights[0, 0, head, i].tolist() == pytest.approx(expected, abs=1e-12)


def test_weights_times_values_are_what_the_layer_adds(model: GPT) -> None:
    """Of the last layer, with the outputs that the model itself computes."""
    idx, inputs, outputs = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 6, 1, 2, 9, 0]]), [], []
    attention = model.transformer.h[1].attn
    hook = attention.register_forward_hook(lambda _, given, made: (inputs.append(given[0]), outputs.append(made))[1])
    weights = attention_weights(model, idx)[1]
    hook.remove()
    values = attention.c_attn(inputs[0])[..., 16:].unflatten(2, (2, 4)).transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(attention.c_proj(mixed), outputs[0], atol=1e-12)


def test_a_mask_is_respected_and_the_mode_stays(model: GPT) -> None:
    idx = torch.tensor([[1, 2, 3, 4, 5, 6]])
    mask = torch.eye(6, dtype=torch.bool)[None, None]
    model.train()
    assert torch.equal(attention_weights(model, idx, mask)[0, 0, 0], torch.eye(6).double())
    assert model.training


def test_weights_of_a_trace_are_those_of_a_forward_pass(model: GPT) -> None:
    idx = torch.tensor([1, 2, 3, 4, 5, 6])
    weights = traced_weights(model, trace(model, idx), 4)
    assert torch.allclose(weights, attention_weights(model, idx[None])[:, 0, :, :4, :4], atol=1e-12)
