"""Computes losses and log-probabilities of given tokens, with few logits in memory at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.answers import IGNORED
from gpt2.model import GPT

CHUNK = 1024
"""Number of positions whose logits exist at a time. In float32, they take 200 MB with GPT-2's vocabulary."""


def token_losses(model: GPT, idx: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of every target in nats, (B, T), in float32 or, for a float64 model, in float64.

    idx, targets and mask have the shapes and dtypes of `GPT.forward`. The loss of a target -1 is 0.
    """
    x = model.hidden(idx, mask).flatten(0, 1)
    losses = []
    for h, t in zip(x.split(CHUNK), targets.flatten().split(CHUNK), strict=True):
        logits = model.head(h)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(F.cross_entropy(exact, t, reduction="none", ignore_index=IGNORED))
    return torch.cat(losses).view(targets.shape)


def score_targets(
    model: GPT, idx: Tensor, positions: Tensor, mask: Tensor, sources: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target, (N,), and whether no other token is likelier, bool (N,).

    `idx`, `positions` and `mask` are those of `GPT.hidden`. `targets`, int64 (N,), are the ids to predict. `sources`,
    int64 (N,), are the offsets in the flattened `idx` of the tokens before them. Log-probabilities are natural
    logarithms in the dtype of the weights, also under autocast, because bfloat16 numbers near 100 are 0.5 apart.
    """
    x = model.hidden(idx, mask, positions=positions).flatten(0, 1)[sources]  # (N, C)
    x = x.to(model.transformer.wte.weight.dtype)
    log_probs: list[Tensor] = []
    is_best: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False):
        for h, t in zip(x.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = model.head(h)  # (CHUNK, V)
            log_probs.append(-F.cross_entropy(logits, t, reduction="none"))
            is_best.append(logits.gather(1, t[:, None])[:, 0] == logits.amax(dim=1))
    return torch.cat(log_probs), torch.cat(is_best)
