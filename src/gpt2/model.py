"""GPT-2, the whole network on one page.

Pre-norm transformer decoder with learned positions and a tied head (Radford et al. 2019, "Language Models
are Unsupervised Multitask Learners"). Parameter names are those of Hugging Face and nanoGPT; the output
head is `wte` itself and has no parameter of its own.

In shape comments: B batch, T time, C = n_embd, nh = n_head, hs = C / nh, V = vocab_size.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.head_loss import IGNORED, head_loss

LOGITS_AT_ONCE = 1024
"""Rows of logits that `log_probs` holds: 200 MB with GPT-2's vocabulary."""
PRESETS: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    # the depth-named family of llm.c
    "d6": {"n_layer": 6, "n_head": 6, "n_embd": 384},
    "d12": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "d24": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "d36": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "d48": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the network, and how to compute it.

    Raises UserError for a shape that cannot be built.
    """

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    """Biases in Linear and LayerNorm."""
    gelu: str = "tanh"
    """`tanh`, as OpenAI trained GPT-2, or `erf`, as nanoGPT computes it. They differ by up to 5e-4."""
    flash: bool = True
    """Attention by scaled_dot_product_attention; False writes it out."""
    pad_vocab: int = 1
    """Round the head's matrix product up to a multiple of this in training, for speed: no parameter is added."""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "pad_vocab"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.gelu not in ("tanh", "erf"):
            raise UserError(f"gelu is {self.gelu!r}; choose tanh (GPT-2) or erf (nanoGPT)")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """The configuration of a published size (`gpt2-medium`) or depth (`d24`)."""
        if name not in PRESETS:
            raise UserError(f"no model size {name!r}; choose from {', '.join(PRESETS)}")
        settings: dict[str, Any] = {**PRESETS[name], **overrides}
        return cls(**settings)


class KVCache:
    """Keys and values of the positions already computed, for decoding one token at a time.

    Holds two tensors of shape (n_layer, B, nh, block_size, hs) and how much of them is filled.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.n_layer, batch_size, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, nh, T, hs) behind the filled part; return everything up to it. `length` is the caller's."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]


def at_least_float32(tensor: Tensor) -> Tensor:
    """In a format whose sums of exponentials are good for something."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Embedding(nn.Embedding):
    """An embedding that draws no numbers where there are none, on the meta device.

    PyTorch would imitate that in Python, and import torch._dynamo for it, which takes a second.
    """

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class LayerNorm(nn.Module):
    """LayerNorm whose bias can be left out."""

    def __init__(self, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.flash = config.flash
        self.layer = layer

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, nh, past + T, hs)
        y = self.attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of the last T positions over all of them, causal without a mask; shapes as in `forward`."""
        T, S = q.size(2), k.size(2)
        dropout = self.dropout if self.training else 0.0
        if mask is None:
            if self.flash and (T == S or T == 1):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=T == S)
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        if self.flash:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))  # (B, nh, T, S)
        weights = F.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1)
        return F.dropout(weights, dropout) @ v


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate=self.approximate)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        x = x + self.mlp(self.ln_2(x))
        return x


class Transformer(nn.Module):
    """The parts of the network, under the names of the published weights."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.bias)


class GPT(nn.Module):
    """The model: `logits, loss = model(idx, targets)`.

    Example: `GPT(GPTConfig.preset("gpt2"))`. Build it under `torch.device("meta")` to load weights into it
    without initialising it first.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation: N(0, 0.02), the 2·n_layer residual projections scaled by (2·n_layer)^-½."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            if parameter.dim() >= 2:
                scale = (2 * self.config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score token ids.

        idx: int64 (B, T). targets: int64 (B, T), where -1 is ignored. With targets, returns the logits
        (B, T, V) and their mean cross-entropy in nats, a float32 scalar; without, the logits of the last
        position (B, 1, V) and None. With a cache, `idx` continues the positions already in it.

        documents: int (B, T), the number of each position's document in its row; attention then stays inside a
        document. Positions still count from the beginning of the row, as GPT-2's do. Not together with a cache.
        """
        x = self.hidden(idx, cache, documents)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        loss = F.cross_entropy(at_least_float32(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return logits, loss

    def hidden(self, idx: Tensor, cache: KVCache | None = None, documents: Tensor | None = None) -> Tensor:
        """Final hidden states (B, T, C), after `ln_f`."""
        start = cache.length if cache is not None else 0
        end = start + idx.size(1)
        assert end <= self.config.block_size, f"{end} positions; block_size is {self.config.block_size}"
        positions = torch.arange(start, end, device=idx.device)
        mask = None
        if documents is not None:
            assert cache is None, "a cache does not know the documents of its positions"
            mask = (documents[:, None, :, None] == documents[:, None, None, :]).tril()  # (B, 1, T, T)
        x = self.states(idx, positions, mask, cache)
        if cache is not None:
            cache.length = end
        return x

    def states(self, idx: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None = None) -> Tensor:
        """Final hidden states (B, T, C) of tokens at the int64 `positions`, (T,) or (B, T).

        mask: bool (B, 1, T, T), which tokens (last) each one sees; None is all up to itself.
        """
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, cache, mask)
        return self.transformer.ln_f(x)

    def loss(self, idx: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy as `forward` gives it, in less memory: only some of the logits exist at a time."""
        x = self.hidden(idx, documents=documents).flatten(0, 1)
        return head_loss(x, self.transformer.wte.weight, targets.flatten(), self.config.pad_vocab)

    def token_losses(self, idx: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Cross-entropy of every target in nats (B, T), float32 at least; arguments as in `forward`.

        Logits exist for LOGITS_AT_ONCE places at a time.
        """
        x = self.hidden(idx, documents=documents).flatten(0, 1)
        parts = zip(x.split(LOGITS_AT_ONCE), targets.flatten().split(LOGITS_AT_ONCE), strict=True)
        losses = [F.cross_entropy(at_least_float32(self.head(h)), t, reduction="none") for h, t in parts]
        return torch.cat(losses).view(targets.shape)

    def log_probs(
        self, idx: Tensor, positions: Tensor, mask: Tensor, sources: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How likely some tokens are after others, and whether no token is likelier.

        idx, positions, mask: as in `states`. sources: int64 (N,), places in the flattened `idx`. targets: int64
        (N,), the token after each. Returns natural logarithms (N,) in the weights' format, and bool (N,). Logits
        exist for these places alone and for LOGITS_AT_ONCE of them at a time; under autocast too in the weights'
        float32, because bfloat16 numbers near 100 are 0.5 apart.
        """
        x = self.states(idx, positions, mask).flatten(0, 1)[sources]  # (N, C)
        x = x.to(self.transformer.wte.weight.dtype)
        parts = zip(x.split(LOGITS_AT_ONCE), targets.split(LOGITS_AT_ONCE), strict=True)
        found: list[Tensor] = []
        best: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            for h, t in parts:
                logits = self.head(h)  # (LOGITS_AT_ONCE, V)
                found.append(-F.cross_entropy(logits, t, reduction="none"))
                best.append(logits.gather(1, t[:, None])[:, 0] == logits.amax(dim=1))
        return torch.cat(found), torch.cat(best)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C)."""
        return F.linear(x, self.transformer.wte.weight)

    def num_params(self) -> int:
        """How many parameters; the tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def crop_block_size(self, block_size: int) -> None:
        """Keep the first `block_size` positions only, in place.

        Raises UserError where that would be more positions than there are.
        """
        if block_size > self.config.block_size:
            raise UserError(
                f"block_size={block_size} is more than the model's {self.config.block_size} positions; "
                f"use --block_size={self.config.block_size} or less"
            )
        self.config = replace(self.config, block_size=block_size)
        self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())
        self.transformer.wpe.num_embeddings = block_size


class Objective(nn.Module):
    """`GPT.loss` as a module of its own, for what wraps modules."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        return self.model.loss(idx, targets, documents)
