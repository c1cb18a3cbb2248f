"""Generates tokens after several prompts of different lengths at the same time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2.device import DTYPES, autocast
from gpt2.errors import UserError
from gpt2.generation.kv_cache import KVCache
from gpt2.generation.sampling import next_token
from gpt2.model import GPT


@torch.no_grad()
def stream_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    vocab_size: int | None = None,
    dtype: str = "float32",
) -> Iterator[Tensor]:
    """Yield the next token of each of the B prompts, int64 (B, 1), until the longest sequence fills the context.

    No prompt may be empty. Only ids below `vocab_size` are drawn. Each sequence gets the tokens that it would get
    alone: shorter prompts are padded on the left, no token attends to the padding, and positions count from the first
    token of the prompt. Logits are computed in the dtype of the weights, and the rest in `dtype`. Raises UserError if
    the model gives no finite numbers.
    """
    weights = model.transformer.wte.weight
    device = weights.device
    size = max(map(len, prompts))
    idx = torch.tensor([[0] * (size - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # (B, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    offsets = torch.arange(model.config.block_size, device=device)
    is_token = offsets >= size - lengths[:, None]  # (B, block_size), False at the padding
    positions = (offsets[:size] - (size - lengths[:, None])).clamp(min=0)  # (B, T)
    causal = offsets[:size, None] >= offsets[:size]
    # padding attends to itself, because a softmax over nothing is not a number
    mask = ((is_token[:, None, :size] & causal) | torch.eye(size, dtype=torch.bool, device=device))[:, None]
    cache = KVCache(model.config, len(prompts), device, weights.dtype if dtype == "float32" else DTYPES[dtype])
    while True:
        with autocast(device, dtype):
            states = model.hidden(idx, mask, cache, positions)
        logits = model.head(states[:, -1].to(weights.dtype))  # (B, V)
        if not torch.isfinite(logits).all():
            raise UserError("the model's logits are not finite: its weights are damaged, or training diverged")
        idx = next_token(
            logits[:, :vocab_size], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        yield idx
        if cache.length == model.config.block_size:
            return
        positions = positions[:, -1:] + 1
        mask = is_token[:, None, None, : cache.length + 1]
