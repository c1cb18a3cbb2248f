"""The output head and the cross-entropy together, so that all logits never exist at once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -1
"""Target of a place that has no loss."""
LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**28}
"""Logits that are held at a time, on a CPU 128 MiB of float32; by the kind of device."""
MOST_PARTS = 16
"""Of a batch, however many logits are then held at a time: torch.compile takes 3 s for each (docs/experiments.md)."""


def head_loss(x: Tensor, weight: Tensor, targets: Tensor, pad_vocab: int = 1) -> Tensor:
    """Mean cross-entropy in nats, a float32 scalar, of the logits `x @ weight.T`.

    x: (N, C), hidden states. weight: (V, C). targets: int64 (N,), where -1 is ignored. pad_vocab: round V up to a
    multiple of this in the matrix products, for speed.

    Under autocast the products are in its format, and sums, exponentials and the weight's gradient in float32. The
    gradients are computed in the forward pass, while a part of the logits is there, as in Hsu et al. 2024 (Liger
    Kernel, section 3.2); so there is no gradient of the gradient.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    width = -(-len(weight) // pad_vocab) * pad_vocab
    return _HeadLoss.apply(x, weight, targets, width, rows_at_once(len(x), width, device), dtype)


def rows_at_once(places: int, width: int, device: str) -> int:
    """How many of a batch's places have their `width` logits computed together on a kind of device."""
    return min(places, max(LOGITS_AT_ONCE.get(device, 2**27) // width, -(-places // MOST_PARTS)))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, width: int, rows: int, dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        size = len(weight)
        w = F.pad(weight.to(dtype), (0, 0, 0, width - size))
        counted = (targets != IGNORED)[:, None]  # (N, 1)
        share = 1 / counted.sum(dtype=exact)  # of a place in the mean
        total = torch.zeros((), dtype=exact, device=x.device)
        dw = torch.zeros(width, w.size(1), dtype=exact, device=x.device)
        dx = []
        shrunk = 2.0 ** (rows - 1).bit_length()  # else float16 could not hold the sum over a part's rows
        with torch.autocast(x.device.type, enabled=False):
            for h, t, c in zip(x.split(rows), targets.split(rows), counted.split(rows), strict=True):
                t, h = t.clamp(min=0)[:, None], h.to(dtype)
                logits = h @ w.T  # (rows, width)
                logits[:, size:] = float("-inf")
                log_probs = F.log_softmax(logits, dim=1, dtype=exact)
                total -= (log_probs.gather(1, t) * c).sum()
                p = log_probs.exp_().scatter_add_(1, t, -torch.ones_like(t, dtype=exact)).to(dtype)
                dx.append((p @ w) * c)
                if dtype == exact:
                    dw.addmm_(p.T, h * c)
                else:
                    dw += shrunk * (p.T @ (h * c / shrunk)).to(exact)
        ctx.save_for_backward(torch.cat(dx), dw[:size], share)
        return total * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, dw, share = ctx.saved_tensors
        gradient = gradient * share
        return dx.to(dw.dtype) * gradient, dw * gradient, None, None, None, None
