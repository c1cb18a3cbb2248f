"""The training loss: the output head and the cross-entropy in chunks, so that all logits never exist at once.

PyTorch's `F.linear_cross_entropy` is not used: in 2.13 it ignores autocast, its bfloat16 loss is off by 0.04, and its
gradient of the head is five times less exact.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.model import GPT

IGNORED = -1
"""Target of a position that has no loss."""
MAX_CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Number of logits in a chunk, by the kind of device; on a CPU they take 128 MiB in float32."""
MAX_CHUNKS = 16
"""Largest number of chunks of a batch: torch.compile takes 3 s for each (docs/experiments.md)."""


class TrainingLoss(nn.Module):
    """The mean cross-entropy of a model over a micro-batch, as the one module that is compiled and trained.

    Its value is that of `GPT.forward` with targets, in less memory.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        self.cross_entropy = chunked_cross_entropy

    def forward(self, idx: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss in nats, a scalar in float32 at least. Shapes and dtypes are those of `GPT.forward`."""
        x = self.model.hidden(idx, mask).flatten(0, 1)  # (B·T, C)
        weight = self.model.transformer.wte.weight
        return self.cross_entropy(x, weight, targets.flatten(), self.model.config.pad_vocab)


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, pad_vocab: int = 1) -> Tensor:
    """Return the mean cross-entropy in nats of the logits `x @ weight.T`, a scalar in float32 at least.

    x: (N, C), hidden states. weight: (V, C). targets: int64 (N,), where -1 is ignored. pad_vocab: round V up to a
    multiple of this in the matrix products, for speed.

    Under autocast the matrix products are in its dtype, and sums, exponentials and the gradient of the weight in
    float32. The gradients are computed in the forward pass, while a chunk of the logits exists (Hsu et al. 2024,
    Liger Kernel, section 3.2), so there is no second derivative.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    width = -(-len(weight) // pad_vocab) * pad_vocab
    return _ChunkedCrossEntropy.apply(x, weight, targets, width, chunk_size(len(x), width, device), dtype)


def chunk_size(positions: int, width: int, device: str) -> int:
    """Return the number of positions in a chunk, of a batch of `positions` with `width` logits each."""
    return min(positions, max(MAX_CHUNK_LOGITS.get(device, 2**27) // width, -(-positions // MAX_CHUNKS)))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, width: int, size: int, dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        vocab_size = len(weight)
        w = F.pad(weight.to(dtype), (0, 0, 0, width - vocab_size))
        counted = (targets != IGNORED)[:, None]  # (N, 1)
        share = 1 / counted.sum(dtype=exact)  # of one position in the mean
        total = torch.zeros((), dtype=exact, device=x.device)
        dw = torch.zeros(width, w.size(1), dtype=exact, device=x.device)
        dx = []
        shrink = 2.0 ** (size - 1).bit_length()  # float16 could not hold the sum over a chunk otherwise
        with torch.autocast(x.device.type, enabled=False):
            for h, t, c in zip(x.split(size), targets.split(size), counted.split(size), strict=True):
                t, h = t.clamp(min=0)[:, None], h.to(dtype)
                logits = h @ w.T  # (size, width)
                logits[:, vocab_size:] = float("-inf")
                log_probs = F.log_softmax(logits, dim=1, dtype=exact)
                total -= (log_probs.gather(1, t) * c).sum()
                p = log_probs.exp_().scatter_add_(1, t, -torch.ones_like(t, dtype=exact)).to(dtype)
                dx.append((p @ w) * c)
                if dtype == exact:
                    dw.addmm_(p.T, h * c)
                else:
                    dw += shrink * (p.T @ (h * c / shrink)).to(exact)
        ctx.save_for_backward(torch.cat(dx), dw[:vocab_size], share)
        return total * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, dw, share = ctx.saved_tensors
        gradient = gradient * share
        return dx.to(dw.dtype) * gradient, dw * gradient, None, None, None, None
