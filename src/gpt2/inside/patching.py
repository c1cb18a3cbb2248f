"""Activation patching: what happens to a prediction when a part of one text's computation is put into another's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import require
from gpt2.generation.kv_cache import KVCache, KVMemory
from gpt2.inside.forward import Progress, Trace, blocks_of, no_progress, reading, require_text, trace
from gpt2.model import GPT, Block

POSITIONS = 8
"""Largest number of positions that are patched in one batch, a sequence for each."""
TOKENS = 512
"""Largest number of tokens in a batch of several sequences; of more, the hidden states leave a CPU's cache."""


@dataclass(frozen=True)
class Patching:
    """Activation patching runs a corrupted text with a value of the clean text in one place (Meng et al. 2022).

    The prediction is measured by the difference of two logits at the last position, as by Wang et al. 2022.
    """

    clean: float
    """The difference of the logits for the clean text."""
    corrupted: float
    """The difference for the corrupted text."""
    streams: Tensor
    """How much the corrupted difference changes with the clean residual stream before a block at a position,
    (n_layer, T)."""
    heads: Tensor
    """How much it changes with the clean output of a head at all positions, (n_layer, nh)."""


def patch(
    model: GPT, clean: Tensor, corrupted: Tensor, answer: int, other: int, progress: Progress = no_progress
) -> Patching:
    """Return how the logit of `answer` minus that of `other` changes when activations of a clean text are patched in.

    clean and corrupted: int64 (T,), texts of the same number of tokens, after whose last token the two ids are
    predicted. progress: receives the number of batches done and all of them. Dropout is off. Raises UserError for
    texts that are equal, of different lengths, or longer than the context, and for a model with replaced parts.
    """
    for idx in (clean, corrupted):
        require_text(model, idx)
    T, n_layer, n_head = len(clean), model.config.n_layer, model.config.n_head
    require(
        len(corrupted) == T,
        f"the two texts have {T} and {len(corrupted)} tokens; give texts of the same number of tokens",
    )
    differing = (clean != corrupted).nonzero()
    require(len(differing) > 0, "the two texts have the same tokens; give texts that differ")
    first = int(differing[0])  # before it, both texts have the same values
    run = _Run(model, trace(model, clean), corrupted, answer, other)
    groups = list(_groups(first, T))
    total, done = n_layer * (len(groups) + 1), 0
    streams, heads = torch.zeros(n_layer, T), torch.zeros(n_layer, n_head)
    with reading(model):
        before = run.difference(run.old.streams[-1][None])
        after = run.difference(run.new.streams[-1][None])
        for positions in groups:
            start = positions[0]
            cache = run.cache(start, len(positions))
            for layer in range(n_layer):
                x = run.old.streams[layer, start:].repeat(len(positions), 1, 1)  # (rows, T - start, C)
                rows = torch.arange(len(positions), device=x.device)
                x[rows, rows] = run.new.streams[layer, start + rows]
                streams[layer, start + rows.cpu()] = (run.finish(x, layer, cache) - before).to(streams)
                done += 1
                progress(done, total)
        cache = run.cache(first, n_head)
        for layer in range(n_layer):
            x = run.with_heads(layer, first)  # (nh, T - first, C)
            heads[layer] = (run.finish(x, layer + 1, cache) - before).to(heads)
            done += 1
            progress(done, total)
    return Patching(float(after), float(before), streams, heads)


def _groups(first: int, T: int) -> Iterator[range]:
    """Yield the positions first … T - 1 in groups that are patched in one batch.

    All sequences of a batch begin at its first position, because values before a patched position stay as they are.
    """
    while first < T:
        size = max(1, min(POSITIONS, TOKENS // (T - first)))
        yield range(first, min(first + size, T))
        first += size


class _Run:
    """The corrupted text's computation, which can be continued from any layer and position."""

    def __init__(self, model: GPT, new: Trace, corrupted: Tensor, answer: int, other: int) -> None:
        """new: the trace of the clean text."""
        self.model, self.new, self.T = model, new, len(corrupted)
        memory = self._memory(1)
        self.old = trace(model, corrupted, KVCache.even(memory, 0, 1, 0, self.T))
        self.keys, self.values = memory.read(0, 0, self.T)
        embeddings = model.transformer.wte.weight
        self.direction = (embeddings[answer] - embeddings[other]).detach()

    def _memory(self, rows: int) -> KVMemory:
        weight = self.model.transformer.wte.weight
        return KVMemory(self.model.config, rows, weight.device, weight.dtype, self.T)

    def cache(self, start: int, rows: int) -> KVCache:
        """Return a cache with the keys and values before the position `start`, which no patch after it changes."""
        memory = self._memory(rows)
        for row in range(rows):
            memory.write(row, 0, self.keys[:, :, :start], self.values[:, :, :start])
        return KVCache.even(memory, 0, rows, start, self.T - start)

    def with_heads(self, layer: int, start: int) -> Tensor:
        """Return the stream after a block with the clean output of one head each, (nh, T - start, C)."""
        block = blocks_of(self.model)[layer]
        n_head, weight = block.attn.n_head, block.attn.c_proj.weight  # (C, C)
        change = (self.new.heads[layer, start:] - self.old.heads[layer, start:]).unflatten(1, (n_head, -1))
        added = torch.einsum("thd,chd->htc", change, weight.unflatten(1, (n_head, -1)))
        x = self.old.streams[layer, start:] + block.attn.c_proj(self.old.heads[layer, start:]) + added
        return x + block.mlp(block.ln_2(x))

    def finish(self, x: Tensor, layer: int, cache: KVCache) -> Tensor:
        """Return the difference of the logits, (rows,), for streams x before a layer, (rows, T - start, C)."""
        *blocks, last = blocks_of(self.model)
        for block in blocks[layer:]:
            x = block(x, cache.mask, cache)
        return self.difference(_last_position(last, x, cache) if layer <= len(blocks) else x)

    def difference(self, x: Tensor) -> Tensor:
        """Return the difference of the logits, (rows,), for streams x after the last block, (rows, …, C)."""
        return self.model.transformer.ln_f(x[:, -1]) @ self.direction


def _last_position(block: Block, x: Tensor, cache: KVCache) -> Tensor:
    """Return what the last block makes of streams (rows, T - start, C) at their last position alone, (rows, 1, C)."""
    attention = block.attn
    qkv = attention.c_attn(block.ln_1(x)).split(x.size(2), dim=2)
    q, k, v = (t.unflatten(2, (attention.n_head, -1)).transpose(1, 2) for t in qkv)  # (rows, nh, T - start, hs)
    k, v = cache.extend(attention.layer, k, v)
    y = attention.attend(q[:, :, -1:], k, v, None).transpose(1, 2).flatten(2)
    x = x[:, -1:] + attention.c_proj(y)
    return x + block.mlp(block.ln_2(x))
