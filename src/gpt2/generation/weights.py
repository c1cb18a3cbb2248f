"""Prepares a model for decoding: its matrices in a smaller dtype, which is what the time of a token depends on.

Decoding one text reads every matrix once per token, so the time follows from their bytes. Activations and LayerNorms
stay as they are, in float32 on a CPU; `decode.c` rounds what is multiplied with int8 to 16 bits. `native.kv_dtype`
says in which dtype keys and values are kept.
"""

import copy
import ctypes
import sys
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.accounting import num_params
from gpt2.device import DTYPES, large_tensors_apart
from gpt2.formats.open import build, check_shapes
from gpt2.formats.source import Source
from gpt2.model import GPT

Quantize = Literal["none", "int8"]
QUANTIZED_ROWS = 1024
"""Number of rows of which float32 copies exist at a time while a matrix is quantized."""
ALIGNMENT = 64
"""Bytes of a cache line."""
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
        if name:
            prepared.set_submodule(name, _converted(name, module, dtype, quantize))
    return _in_large_pages(prepared)


def read_for_decoding(
    source: Source, device: torch.device, dtype: str = "float32", quantize: Quantize = "none"
) -> GPT:
    """Return `for_decoding` of the model of an opened file, each of whose matrices is converted when it is read.

    Memory holds the converted model and one matrix more. Errors are those of `build`.
    """
    check_shapes(source)  # a damaged configuration may ask for any number of bytes
    pages = _LargePages(4 * num_params(source.config)) if device.type == "cpu" else None

    def convert(name: str, module: nn.Module) -> nn.Module:
        converted = _converted(name, module.to(device), dtype, quantize)
        if converted is not module:
            for parameter in module.parameters():
                parameter.data = torch.empty(0)  # the model still holds the module
        if pages is not None:
            for parameter in converted.parameters(recurse=False):
                parameter.data = pages.copy(parameter.data)
        return converted

    with large_tensors_apart():
        model = build(source, convert).eval()
    if pages is not None:
        use_large_pages(pages.used)
    return model


def _converted(name: str, module: nn.Module, dtype: str, quantize: Quantize) -> nn.Module:
    """Return the module that decodes for a module of the model: a `Matrix` of the format, or the module itself."""
    is_matrix = isinstance(module, (nn.Linear, nn.Embedding)) and name != "transformer.wpe"
    if not is_matrix or (quantize == "none" and dtype == "float32"):
        return module
    return Matrix.of(module, DTYPES[dtype], quantize)


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


class _LargePages:
    """Memory for the tensors of a model, one after the other, so that large pages hold all of them.

    The system provides what is used of it, so it may be larger than that.
    """

    def __init__(self, n_bytes: int) -> None:
        """n_bytes: at least the sum of the tensors' bytes."""
        self._memory = torch.empty(n_bytes + 2 * LARGE_PAGE, dtype=torch.uint8)
        self._begin = self._end = -self._memory.data_ptr() % LARGE_PAGE

    @property
    def used(self) -> Tensor:
        """Return the memory of the tensors, uint8."""
        return self._memory[self._begin : self._end]

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor behind the ones before it. It begins at a cache line."""
        begin = self._end
        self._end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return self._memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


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
    values, scales = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight), dtype=torch.float32)
    for begin in range(0, len(weight), QUANTIZED_ROWS):
        rows = slice(begin, begin + QUANTIZED_ROWS)
        part = weight[rows].float()
        scales[rows] = part.abs().amax(dim=1).clamp(min=1e-30) / 127
        values[rows] = (part / scales[rows, None]).round()
    return values, scales
