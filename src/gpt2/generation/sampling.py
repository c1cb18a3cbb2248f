"""Chooses the next token from logits."""

import torch
from torch import Tensor

LEAST_P = 1e-30
"""Smallest probability that `top_p` counts; a smaller one could become 0 in float32."""


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return the logits (B, V) with all except the `k` largest of each row set to -inf."""
    threshold = logits.topk(min(k, logits.size(-1))).values[:, [-1]]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return the logits (B, V) with all set to -inf except the fewest likeliest whose probabilities reach `p`.

    This is nucleus sampling (Holtzman et al. 2019). The likeliest token always stays.
    """
    ordered, indices = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    # deterministic sums of floats exist on CUDA since PyTorch 2.14
    summed = probabilities.cpu() if torch.are_deterministic_algorithms_enabled() else probabilities
    likelier = summed.cumsum(dim=-1).to(logits.device) - probabilities  # probability of all likelier tokens
    ordered = ordered.masked_fill(likelier >= max(p, LEAST_P), float("-inf"))
    return torch.empty_like(logits).scatter(-1, indices, ordered)


def next_token(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw one token for each row of float logits (B, V); return int64 (B, 1).

    A `temperature` of 0 takes the likeliest token. `top_k` and `top_p` limit the choice, in this order.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
