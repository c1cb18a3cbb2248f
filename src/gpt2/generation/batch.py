"""Decoding prompts of different lengths side by side."""

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
    """Yield the tokens that follow each of the B prompts, none of them empty: int64 (B, 1), a position at a time.

    Ends where the longest row fills the model's positions. Only ids below `vocab_size` are drawn. Each row gets what
    it would get alone: shorter prompts are padded on the left with what nothing looks at, and their positions count
    from their own first token. Logits are computed in the weights' format, whatever the `dtype`. Raises UserError
    where the weights give no finite numbers.
    """
    weights = model.transformer.wte.weight
    device = weights.device
    size = max(map(len, prompts))
    idx = torch.tensor([[0] * (size - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # (B, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    places = torch.arange(model.config.block_size, device=device)
    present = places >= size - lengths[:, None]  # (B, block_size), False at the padding
    positions = (places[:size] - (size - lengths[:, None])).clamp(min=0)  # (B, T)
    causal = places[:size, None] >= places[:size]
    # padding sees itself, because a softmax over nothing is not a number
    mask = ((present[:, None, :size] & causal) | torch.eye(size, dtype=torch.bool, device=device))[:, None]
    cache = KVCache(model.config, len(prompts), device, weights.dtype if dtype == "float32" else DTYPES[dtype])
    while True:
        with autocast(device, dtype):
            states = model.hidden(idx, mask, cache, positions)
        logits = model.head(states[:, -1].to(weights.dtype))  # (B, V)
        if not torch.isfinite(logits).all():
            raise UserError("the model's logits are no finite numbers: its weights are damaged, or training diverged")
        idx = next_token(
            logits[:, :vocab_size], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        yield idx
        if cache.length == model.config.block_size:
            return
        positions = positions[:, -1:] + 1
        mask = present[:, None, None, : cache.length + 1]
