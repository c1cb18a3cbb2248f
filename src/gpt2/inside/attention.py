"""The attention weights of every head."""

import math

import torch
from torch import Tensor

from gpt2.inside.forward import Trace, blocks_of, reading
from gpt2.model import GPT, CausalSelfAttention


def attention_weights(model: GPT, idx: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how much every position attends to every other one: (n_layer, B, nh, T, T), each last axis sums to 1.

    idx: int64 (B, T). mask: bool (B, 1, T, T) as in `GPT.forward`; None is causal attention. Dropout is off. Weights
    are computed from the inputs of each layer, since fused attention never has them in memory. Raises UserError for a
    model with replaced parts.
    """
    found: list[Tensor] = []

    def compute(attention: CausalSelfAttention, inputs: tuple[Tensor, ...]) -> None:
        found.append(_weights(attention, inputs[0], mask))

    with reading(model):
        hooks = [block.attn.register_forward_pre_hook(compute) for block in blocks_of(model)]
        try:
            model.hidden(idx, mask)
        finally:
            for hook in hooks:
                hook.remove()
    return torch.stack(found)


def traced_weights(model: GPT, run: Trace, tokens: int) -> Tensor:
    """Return the attention weights of the first `tokens` tokens of a traced text, (n_layer, nh, tokens, tokens).

    They are those of `attention_weights` with causal attention, without another forward pass. Raises UserError for a
    model with replaced parts.
    """
    with reading(model):
        layers = zip(blocks_of(model), run.streams[:-1, None, :tokens], strict=True)
        return torch.stack([_weights(block.attn, block.ln_1(x), None)[0] for block, x in layers])


def _weights(attention: CausalSelfAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weights (B, nh, T, T) of a layer with the inputs x, (B, T, C)."""
    T = x.size(1)
    allowed = torch.ones(T, T, dtype=torch.bool, device=x.device).tril() if mask is None else mask
    q, k, _ = attention.c_attn(x).split(x.size(2), dim=2)
    q, k = (t.unflatten(2, (attention.n_head, -1)).transpose(1, 2) for t in (q, k))  # (B, nh, T, hs)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    return scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
