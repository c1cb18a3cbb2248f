"""One forward pass over a text, of which the values on the way are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from gpt2.device import exact_float32
from gpt2.errors import require
from gpt2.generation.kv_cache import KVCache
from gpt2.model import GPT, Block, CausalSelfAttention, Embedding, LayerNorm
from gpt2.spelling import counted

Progress = Callable[[int, int], None]
"""A function called with the amount of work done and all of it. What it raises ends the work."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Trace:
    """A trace holds what a model computes on the way for a text of T tokens. C = n_embd."""

    streams: Tensor
    """The residual stream before each block and after the last one, (n_layer + 1, T, C)."""
    heads: Tensor
    """Outputs of the heads of each layer next to each other, before c_proj, (n_layer, T, C)."""
    mlps: Tensor
    """What each MLP adds to the residual stream, (n_layer, T, C)."""


def blocks_of(model: GPT) -> list[Block]:
    """Return the blocks of a model in their order."""
    return [cast(Block, block) for block in model.transformer.h]


def require_own_parts(model: GPT) -> None:
    """Raise UserError for a model in which a part other than an MLP was replaced, so that its values are unknown.

    An MLP of another kind is used as it is.
    """
    parts: list[tuple[str, nn.Module, type]] = [("model", model, GPT)]
    if type(model) is GPT:
        net = model.transformer
        parts += [("wte", net.wte, Embedding), ("wpe", net.wpe, Embedding), ("ln_f", net.ln_f, LayerNorm)]
    for layer, block in enumerate(blocks_of(model) if type(model) is GPT else []):
        parts.append((f"h.{layer}", block, Block))
        if type(block) is Block:
            parts += [(f"h.{layer}.{name}", getattr(block, name), LayerNorm) for name in ("ln_1", "ln_2")]
            parts.append((f"h.{layer}.attn", block.attn, CausalSelfAttention))
        if type(block) is Block and type(block.attn) is CausalSelfAttention:
            parts += [(f"h.{layer}.attn.{n}", getattr(block.attn, n), nn.Linear) for n in ("c_attn", "c_proj")]
    for name, part, kind in parts:
        found = type(part)
        require(
            found is kind,
            f"{name} of this model is {found.__name__} and not {kind.__name__}, so the values inside it are unknown; "
            "give a model in which at most the MLPs are replaced, in float32 and not quantized",
        )


@contextmanager
def reading(model: GPT) -> Iterator[None]:
    """Compute without dropout, gradients and TF32 inside the `with` block; restore the model's mode afterwards.

    Raises UserError for a model with replaced parts.
    """
    require_own_parts(model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), exact_float32():
            yield
    finally:
        model.train(was_training)


def require_text(model: GPT, idx: Tensor, least: int = 1) -> None:
    """Raise UserError for a text, int64 (T,), of fewer than `least` tokens or of more than the model's context."""
    assert idx.dim() == 1, f"a text has one axis, and this one has {idx.dim()}"
    most = model.config.block_size
    require(
        least <= len(idx),
        f"the text has {counted(len(idx), 'token')}, and at least {least} are needed; give a longer one",
    )
    require(
        len(idx) <= most,
        f"the text has {counted(len(idx), 'token')}, and the model sees {most:,}; give a shorter one",
    )


def trace(model: GPT, idx: Tensor, cache: KVCache | None = None) -> Trace:
    """Return what a model computes on the way for the text idx, int64 (T,). Dropout is off.

    cache: keeps the keys and values of all layers. Raises UserError for a model with replaced parts, and for a text
    that is empty or longer than the context.
    """
    require_text(model, idx)
    streams: list[Tensor] = []
    heads: list[Tensor] = []
    mlps: list[Tensor] = []
    with reading(model):
        hooks = [model.transformer.ln_f.register_forward_pre_hook(lambda _, given: streams.append(given[0][0]))]
        for block in blocks_of(model):
            hooks += [
                block.register_forward_pre_hook(lambda _, given: streams.append(given[0][0])),
                block.attn.c_proj.register_forward_pre_hook(lambda _, given: heads.append(given[0][0])),
                block.mlp.register_forward_hook(lambda _, given, made: mlps.append(made[0])),
            ]
        try:
            model.hidden(idx[None], cache=cache)
        finally:
            for hook in hooks:
                hook.remove()
    return Trace(torch.stack(streams), torch.stack(heads), torch.stack(mlps))
