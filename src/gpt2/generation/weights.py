"""Prepares a model for decoding: its matrices in a smaller dtype, which is what the time of a token depends on.

Decoding one text reads every matrix once per token, so the time follows from their bytes. Activations, LayerNorms and
the cache stay as they are, in float32 on a CPU.
"""

import copy
import ctypes
import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.device import DTYPES
from gpt2.model import GPT

Quantize = Literal["none", "int8"]
LARGE_PAGE, MADV_COLLAPSE = 2**21, 25
"""Bytes of a large page, and the number of the request for them, see madvise(2)."""


def for_decoding(model: GPT, dtype: str = "float32", quantize: Quantize = "none") -> GPT:
    """Return a model that decodes with matrices in `dtype` or in int8; the same model if nothing changes.

    The matrices are those of all nn.Linear modules and the token embeddings. With int8, a row of a matrix shares one
    scale, and products are in `dtype`.
    """
    if quantize == "none" and dtype == "float32":
        return _in_large_pages(model)
    prepared = with_own_modules(model).eval()
    for name, module in list(prepared.named_modules()):
        if isinstance(module, (nn.Linear, nn.Embedding)) and name != "transformer.wpe":
            parent, _, own = name.rpartition(".")
            setattr(prepared.get_submodule(parent), own, Matrix.of(module, DTYPES[dtype], quantize))
    return _in_large_pages(prepared)


def with_own_modules(model: GPT) -> GPT:
    """Return a copy of the modules of a model, with the same parameters.

    Hooks of one are not called by the other, and a module that is replaced in one stays in the other.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    return copy.deepcopy(model, shared)


def _in_large_pages(model: GPT) -> GPT:
    for parameter in model.parameters():
        use_large_pages(parameter)
    return model


class Matrix(nn.Module):
    """A matrix (out, in) for decoding, which stands for an nn.Linear or for the token embeddings and the head.

    Products are in the dtype of the matrix, or of `dtype` where it is int8, and results in that of the input.
    """

    def __init__(
        self, weight: Tensor, scales: Tensor | None, bias: Tensor | None, dtype: torch.dtype, is_embedding: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales = None if scales is None else nn.Parameter(scales, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.dtype, self.is_embedding = dtype, is_embedding

    @classmethod
    def of(cls, module: nn.Linear | nn.Embedding, dtype: torch.dtype, quantize: Quantize) -> "Matrix":
        """Return the matrix of a layer in another dtype."""
        bias = module.bias if isinstance(module, nn.Linear) else None
        is_embedding = isinstance(module, nn.Embedding)
        weight = module.weight.detach()
        if quantize == "none":
            return cls(weight.to(dtype), None, bias, dtype, is_embedding)
        return cls(*quantized(weight), bias, dtype, is_embedding)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings of ids, or the product with hidden states."""
        if not self.is_embedding:
            return self.unembed(x)
        rows = self.weight[x].float()
        return rows if self.scales is None else rows * self.scales[x][..., None]

    def unembed(self, x: Tensor) -> Tensor:
        """Return the product of hidden states (..., in) with each row: (..., out)."""
        y = F.linear(x.to(self.dtype), self.weight.to(self.dtype)).to(x.dtype)
        y = y if self.scales is None else y * self.scales
        return y if self.bias is None else y + self.bias


def use_large_pages(tensor: Tensor) -> None:
    """Ask Linux (6.1 or newer) to keep a tensor in pages of 2 MiB, which are read about a tenth faster.

    What the tensor holds and where it is stays the same. Nothing happens where this is not possible.
    """
    first = tensor.data_ptr() // LARGE_PAGE * LARGE_PAGE
    last = -(-(tensor.data_ptr() + tensor.nbytes) // LARGE_PAGE) * LARGE_PAGE
    if sys.platform == "linux" and tensor.device.type == "cpu" and tensor.nbytes >= LARGE_PAGE // 4:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_COLLAPSE)


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, which is what decoding a token of one text reads."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix (out, in) as int8 and the scale of each row, float32 (out,): weight ≈ int8 · scale.

    Rounding is to nearest, and the largest value of a row becomes ±127.
    """
    scales = weight.float().abs().amax(dim=1).clamp(min=1e-30) / 127
    return (weight.float() / scales[:, None]).round().to(torch.int8), scales
