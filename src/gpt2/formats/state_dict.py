"""From the state dict of any GPT-2 in PyTorch to our names and shapes."""

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch

from gpt2.errors import UserError
from gpt2.formats.source import Stored
from gpt2.model import GPTConfig

WRAPPERS = ("_orig_mod.", "module.", "transformer.")  # torch.compile's, DDP's, and the one hub originals leave out
NOT_PARAMETERS = (".attn.bias", ".attn.masked_bias")  # causal masks
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""What Hugging Face's Conv1D keeps as (in, out), where nn.Linear has (out, in)."""


def our_names(tensors: Iterable[tuple[str, Stored]], where: object) -> dict[str, Stored]:
    """The parameters among `tensors`, named and shaped as ours.

    Prefixes are unified, masks dropped, and Conv1D's matrices, known by the shape of `c_attn`, transposed. The
    head is dropped too: raises UserError where it is not the token embedding.
    """
    found: dict[str, Stored] = {}
    head: Stored | None = None
    for key, tensor in tensors:
        while key.startswith(WRAPPERS):
            key = key.split(".", 1)[1]
        if key == "lm_head.weight":
            head = tensor
        elif not key.endswith(NOT_PARAMETERS):
            found[f"transformer.{key}"] = tensor
    embedding = found.get("transformer.wte.weight")
    if head and embedding and not _equal(head, embedding):
        raise UserError(f"{where} has an lm_head.weight of its own; GPT-2's head is its token embedding")
    c_attn = found.get("transformer.h.0.attn.c_attn.weight")
    if c_attn and len(c_attn.shape) == 2 and c_attn.shape[1] == 3 * c_attn.shape[0]:
        found = {k: t.transposed() if k.endswith(TRANSPOSED) else t for k, t in found.items()}
    return found


def _equal(head: Stored, embedding: Stored) -> bool:
    if head.shape != embedding.shape:
        return False
    ours, theirs = embedding.read(), head.read()
    if ours.data_ptr() == theirs.data_ptr():
        return True
    coarser = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(ours.to(coarser).nan_to_num(), theirs.to(coarser).nan_to_num())


def sizes(values: dict[str, Any]) -> dict[str, Any]:
    """The five sizes of a network among other values; one that is missing is None."""
    return {name: values.get(name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}


def described_config(values: Any, where: object) -> GPTConfig:
    """The configuration with the fields that a file describes. Raises UserError for what is none."""
    kinds = {f.name: type(f.default) for f in fields(GPTConfig)}
    for name, value in dict(values).items():
        if type(value) is not kinds.get(name) and not (kinds.get(name) is float and type(value) is int):
            raise UserError(f"{where} describes no GPT-2: {str(name)[:40]}={str(value)[:40]!r}")
    try:
        return GPTConfig(**values)
    except UserError as error:
        raise UserError(f"{where} describes no GPT-2: {error}") from None


def guess_config(tensors: dict[str, Stored], where: object) -> tuple[GPTConfig, str]:
    """The configuration that the shapes of `tensors` (our names) tell, and in a line what had to be assumed.

    Raises UserError where they are not those of a GPT-2.
    """
    wte, wpe = tensors.get("transformer.wte.weight"), tensors.get("transformer.wpe.weight")
    layers = {int(m[1]) for key in tensors if (m := re.fullmatch(r"transformer\.h\.(\d{1,6})\..*", key))}
    if wte is None or wpe is None or not layers or len(wte.shape) != 2 or len(wpe.shape) != 2:
        raise UserError(f"{where} holds no GPT-2: it lacks wte.weight, wpe.weight or blocks")
    n_embd = wte.shape[1]
    n_head = n_embd // 64 if n_embd % 64 == 0 else 1
    config = GPTConfig(
        block_size=wpe.shape[0],
        vocab_size=wte.shape[0],
        n_layer=len(layers),
        n_head=n_head,
        n_embd=n_embd,
        bias="transformer.ln_f.bias" in tensors,
    )
    return config, f"{where} does not say its heads and GELU: taken to be n_head={n_head} and tanh"
