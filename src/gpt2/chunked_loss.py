"""The training loss: the output head and the cross-entropy in chunks, so that all logits never exist at once.

PyTorch's `F.linear_cross_entropy` is not used: in 2.13 it ignores autocast, its bfloat16 loss is off by 0.04, and its
gradient of the head is five times less exact.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.answers import IGNORED
from gpt2.documents import document_mask
from gpt2.model import GPT, Mask

MAX_CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**28}
"""Number of logits in a chunk, by the kind of device; on a CPU they take 128 MiB in float32."""
MAX_CHUNKS = 16
"""Largest number of chunks of a batch: torch.compile takes 3 s for each (docs/experiments.md)."""
FLOAT16_SCALE = 2.0**10
"""Factor of probabilities in float16, which rounds them to 0 below 3e-8; the gradients are divided by it again."""


class TrainingLoss(nn.Module):
    """The mean cross-entropy of a model over a micro-batch, as the one module that is compiled and trained.

    Its value is that of `GPT.forward` with targets, in less memory. eot_token: the token that begins a document, and
    attention stays inside documents; None for attention to the complete sequence.
    """

    def __init__(self, model: GPT, eot_token: int | None = None) -> None:
        super().__init__()
        self.model, self.eot_token = model, eot_token
        self.mask_of: Callable[[Tensor, int], Mask] = document_mask
        self.cross_entropy = chunked_cross_entropy

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Return the loss in nats, a scalar in float32 at least. Shapes and dtypes are those of `GPT.forward`."""
        mask = None if self.eot_token is None else self.mask_of(idx, self.eot_token)
        x = self.model.hidden(idx, mask).flatten(0, 1)  # (B·T, C)
        weight = self.model.transformer.wte.weight
        return self.cross_entropy(x, weight, targets.flatten(), self.model.config.pad_vocab)


def chunked_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, pad_vocab: int = 1) -> Tensor:
    """Return the mean cross-entropy in nats of the logits `x @ weight.T`, a scalar in float32 at least.

    x: (N, C), hidden states. weight: (V, C). targets: int64 (N,), where -1 is ignored; where all are, the loss is 0.
    pad_vocab: round V up to a multiple of this in the matrix products, for speed.

    Under autocast the matrix products are in its dtype, and sums, exponentials and the gradient of the weight in
    float32. The gradients are computed in the forward pass, while a chunk of the logits exists (Hsu et al. 2024,
    Liger Kernel, section 3.2), so there is no second derivative.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    width = -(-len(weight) // pad_vocab) * pad_vocab
    return _ChunkedCrossEntropy.apply(x, weight, targets, width, chunk_size(len(x), width, device), dtype)


def chunk_size(positions: int, width: int, device: str) -> int:
    """Return the number of positions in a chunk, of a batch of `positions` with `width` logits each.

    The chunks are equal where a possible number of them divides `positions`; else the last one is smaller by less
    than the number of chunks.
    """
    largest = max(MAX_CHUNK_LOGITS.get(device, 2**27) // width, -(-positions // MAX_CHUNKS))
    least = -(-positions // largest)
    count = next((n for n in range(least, MAX_CHUNKS + 1) if positions % n == 0), least)
    return -(-positions // count)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, width: int, size: int, dtype: torch.dtype
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        vocab_size = len(weight)
        w = F.pad(weight.to(dtype), (0, 0, 0, width - vocab_size))
        counted = (targets != IGNORED)[:, None]  # (N, 1)
        share = 1 / counted.sum(dtype=exact).clamp(min=1)  # of one position in the mean
        scale = FLOAT16_SCALE if dtype == torch.float16 else 1.0
        total = torch.zeros((), dtype=exact, device=x.device)
        dw = torch.zeros(width, w.size(1), dtype=exact, device=x.device)
        dx: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            for h, t, c in zip(x.split(size), targets.split(size), counted.split(size), strict=True):
                h = convert_after([total, dw, *dx[-1:]], h, dtype) if torch.compiler.is_compiling() else h.to(dtype)
                dx.append(_add_chunk(h, w, t.clamp(min=0)[:, None], c, vocab_size, scale, total, dw))
        ctx.save_for_backward(torch.cat(dx), dw[:vocab_size], share / scale)
        return total * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, dw, factor = ctx.saved_tensors
        gradient = gradient * factor
        return dx.to(dw.dtype) * gradient, dw * gradient, None, None, None, None


def _add_chunk(
    h: Tensor, w: Tensor, t: Tensor, c: Tensor, vocab_size: int, scale: float, total: Tensor, dw: Tensor
) -> Tensor:
    """Add the losses of a chunk to `total` and their gradient for w to `dw`, and return that for h, (size, C).

    h: (size, C). w: (width, C). t: (size, 1), targets. c: bool (size, 1), whether they count. The gradients are
    multiplied by `scale`. The logits of the chunk exist only during this call.
    """
    logits = (h @ w.T).to(dw.dtype)  # (size, width)
    logits[:, vocab_size:] = float("-inf")
    log_probs = F.log_softmax(logits, dim=1)
    del logits
    total -= (log_probs.gather(1, t) * c).sum()
    if torch.compiler.is_compiling():  # in the same pass over the logits; uncompiled code would need further passes
        p = (log_probs.exp() - (torch.arange(len(w), device=t.device) == t).to(dw.dtype)) * scale
    else:
        p = log_probs.exp_().scatter_add_(1, t, -torch.ones_like(t, dtype=dw.dtype))
        p = p if scale == 1 else p.mul_(scale)
    del log_probs
    p = p.to(h.dtype)
    add = add_product_opaque if torch.compiler.is_compiling() else add_product
    add(dw, p.T, h * c)
    return (p @ w) * c


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the matrix product `a @ b` to `total`, whose dtype is float32 or that of a and b."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    elif a.dtype == torch.float16:  # it could hold neither the sum over a frequent token nor that over a rare one
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        total += a @ b


add_product_opaque = torch.library.custom_op("gpt2::add_product", add_product, mutates_args=["total"])
"""The same for compiled code, because PyTorch cannot compile products of 16-bit factors with a float32 sum."""


@torch.library.custom_op("gpt2::convert_after", mutates_args=())
def convert_after(done: Sequence[Tensor], h: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of `h` in `dtype`, computed after the tensors `done`.

    torch.compile does not look inside, so it cannot begin a chunk before the results of the previous one exist. It
    would otherwise keep the logits of many chunks at once, because they do not depend on each other.
    """
    return h.to(dtype, copy=True)


@convert_after.register_fake
def _(done: Sequence[Tensor], h: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(h, dtype=dtype)
