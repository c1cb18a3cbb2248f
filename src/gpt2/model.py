"""GPT-2, the whole network on one page.

A pre-norm transformer decoder with learned positions and a tied head (Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners"). Parameters have Hugging Face's and nanoGPT's names; `wte` is also the output head.
In shape comments B is the batch, T the time, C = n_embd, nh = n_head, hs = C / nh and V = vocab_size.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.documents import attend_in_blocks
from gpt2.errors import require
from gpt2.nanogpt_methods import NanoGPTMethods

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from gpt2.generation.kv_cache import KVCache

Mask: TypeAlias = "Tensor | BlockMask | None"
PRESETS: dict[str, dict[str, Any]] = {
    name: {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd} for name, n_layer, n_head, n_embd in (
        ("gpt2", 12, 12, 768), ("gpt2-medium", 24, 16, 1024), ("gpt2-large", 36, 20, 1280), ("gpt2-xl", 48, 25, 1600),
        ("d6", 6, 6, 384), ("d12", 12, 12, 768), ("d24", 24, 16, 1024), ("d36", 36, 20, 1280), ("d48", 48, 25, 1600),
)}  # fmt: skip


@dataclass(frozen=True)
class GPTConfig:
    """A GPTConfig holds the shape of the network and how to compute it. Raises UserError for an impossible shape."""

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    gelu: str = "tanh"
    """`tanh`, as OpenAI trained GPT-2, or `erf`, as nanoGPT computes it. They differ by up to 5e-4."""
    flash: bool = True
    """Attention by scaled_dot_product_attention; False computes it in separate operations."""
    pad_vocab: int = 1
    """Training rounds the head's matrix product up to a multiple of this, for speed; no parameter is added."""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "pad_vocab"):
            value = getattr(self, name)
            require(type(value) is int and value >= 1, f"{name} is {value!r}; it must be an int of at least 1")
        require({type(self.bias), type(self.flash)} == {bool}, "bias and flash must be True or False")
        require(self.n_embd % self.n_head == 0, f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        is_share = isinstance(self.dropout, int | float) and 0 <= self.dropout < 1
        require(is_share, f"dropout is {self.dropout!r}; it must be at least 0 and below 1")
        require(self.gelu in ("tanh", "erf"), f"gelu is {self.gelu!r}; choose tanh (GPT-2) or erf (nanoGPT)")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """Return the configuration of a published size (`gpt2-medium`) or depth (`d24`). Raises UserError."""
        require(name in PRESETS, f"no model size {name!r}; choose from {', '.join(PRESETS)}")
        return replace(cls(**PRESETS[name]), **overrides)


class LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (p if p is None else p.to(input.dtype) for p in (self.weight, self.bias))  # FSDP: bfloat16
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.flash, self.layer = config.n_head, config.dropout, config.flash, layer

    def forward(self, x: Tensor, mask: Mask = None, cache: "KVCache | None" = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, nh, S, hs), S = past + T
        y = self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        if mask is not None and not isinstance(mask, Tensor):
            return attend_in_blocks(q, k, v, mask)
        T, S, dropout = q.size(2), k.size(2), self.dropout if self.training else 0.0
        if mask is None and not (self.flash and T in (1, S)):  # is_causal, or the last position sees all
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        if self.flash:
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None and T == S)
        assert mask is not None
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, nh, T, S)
        weights = F.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
        return F.dropout(weights, dropout) @ v


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate, self.dropout = "tanh" if config.gelu == "tanh" else "none", config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Mask = None, cache: "KVCache | None" = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # there PyTorch would import torch._dynamo to draw nothing, which takes a second
            super().reset_parameters()

    def unembed(self, x: Tensor) -> Tensor:
        """Return the product (..., V) of hidden states (..., C) with each embedding; the head is tied."""
        return F.linear(x, self.weight)


class Transformer(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, bias=config.bias)


class GPT(NanoGPTMethods):
    """The GPT-2 language model: `logits, loss = GPT(GPTConfig.preset("gpt2"))(idx, targets)`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw GPT-2's initial weights: N(0, 0.02), with the residual projections scaled by (2·n_layer)^-½."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2 and not parameter.is_meta:
                scale = (2 * self.config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: Tensor, targets: Tensor | None = None, mask: Mask = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits and, with targets, their mean cross-entropy in nats, a float32 scalar.

        idx: int64 (B, T). targets: int64 (B, T), where -1 is ignored. Without targets the logits are those of the
        last position, (B, 1, V), and the loss is None; with targets they are (B, T, V). mask: see `hidden`.
        """
        x = self.hidden(idx, mask)
        if targets is None:
            return self.head(x[:, [-1]]), None
        assert targets.shape == idx.shape, f"targets {(*targets.shape,)} must have the shape of idx, {(*idx.shape,)}"
        logits = self.head(x)
        exact = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(exact, targets.flatten(), ignore_index=-1)

    def hidden(
        self, idx: Tensor, mask: Mask = None, cache: "KVCache | None" = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the final hidden states, (B, T, C), after `ln_f`.

        idx: int64 (B, T). mask: bool (B, 1, T, S), True where a position (third axis) attends to another (last axis),
        or such a BlockMask; None is causal attention, or attention to all S positions if T is 1. cache: keeps keys
        and values of idx, and returns those of all S positions. positions: int64 (T,) or (B, T); default 0 … T - 1.
        """
        if positions is None:
            assert idx.size(1) <= self.config.block_size, f"{idx.size(1)} positions exceed block_size"
            positions = torch.arange(idx.size(1), device=idx.device)
        x = F.dropout(self.transformer.wte(idx) + self.transformer.wpe(positions), self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, mask, cache)
        return self.transformer.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """Return the logits (..., V) of hidden states (..., C)."""
        return self.transformer.wte.unembed(x)
