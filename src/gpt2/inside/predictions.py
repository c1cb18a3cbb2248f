"""What a model predicts at each token of a text: the losses, and the logit lens of every layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import require
from gpt2.inside.forward import Progress, Trace, no_progress, reading, require_text, trace
from gpt2.model import GPT

ROWS = 768
"""Number of hidden states whose logits exist at a time. In float32 they take 154 MB with GPT-2's vocabulary. Products
of a third as many are a quarter slower on a CPU."""
CACHED_ROWS = 16
"""Number of hidden states whose logits are read together. In float32 they take 3 MB, which a CPU's cache holds."""
CACHED_EMBEDDINGS = 512
"""Number of embeddings that are multiplied together, for the same reason."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of the next token at each of T positions. Those of every layer have an axis n_layer in front.

    Logarithms are natural, and computed in float32, or in float64 for a float64 model.
    """

    top_ids: Tensor
    """The k likeliest tokens, the likeliest first, int64 (T, k)."""
    top_log_probs: Tensor
    """Their log-probabilities, (T, k)."""
    entropy: Tensor
    """Entropy of the distribution in nats, (T,)."""
    log_prob: Tensor
    """Log-probability of the token that does come next, (T - 1,). Its negative is the loss in nats."""
    rank: Tensor
    """Rank of that token, int64 (T - 1,): 1 plus the number of tokens that are likelier."""

    @property
    def loss(self) -> Tensor:
        """Return the loss of every token except the first in nats, (T - 1,)."""
        return -self.log_prob


@dataclass(frozen=True)
class Lens:
    """The logit lens shows what each layer would predict if it were the last (nostalgebraist 2020)."""

    layers: Predictions
    """Predictions of every layer, with an axis n_layer in front."""
    kl: Tensor
    """KL divergence between the last layer's distribution and that of each layer in nats, (n_layer, T).

    It is the sum over the vocabulary of p_last·log(p_last / p_layer).
    """

    @property
    def last(self) -> Predictions:
        """Return the predictions of the last layer, which are those of the model."""
        return Predictions(**{name: values[-1] for name, values in vars(self.layers).items()})


def losses(model: GPT, idx: Tensor, k: int = 5) -> Predictions:
    """Return the loss, rank and entropy at each position of a text, and the k likeliest tokens. idx: int64 (T,).

    The first token has no loss, because nothing comes before it. Dropout is off. Raises UserError for a text that is
    empty or longer than the context, for a model with replaced parts and for numbers that are not finite.
    """
    require_text(model, idx)
    with reading(model):
        x = model.hidden(idx[None])
        (found,), _ = _read(model, x, idx, k, no_progress)
    return _joined(found, len(idx))


def logit_lens(
    model: GPT, idx: Tensor, k: int = 5, progress: Progress = no_progress, run: Trace | None = None
) -> Lens:
    """Return the predictions of every layer for a text idx, int64 (T,): its hidden state, through ln_f and the head.

    The last layer's are those of the model. Logits exist of some positions at a time. progress: receives the number
    of positions done and T. run: the trace of the text, if there is one. Errors are those of `losses`.
    """
    run = trace(model, idx) if run is None else run
    with reading(model):
        layers, divergences = _read(model, model.transformer.ln_f(run.streams[1:]), idx, k, progress)
    by_layer = [vars(_joined(found, len(idx))) for found in layers]
    stacked = {name: torch.stack([one[name] for one in by_layer]) for name in by_layer[0]}
    return Lens(Predictions(**stacked), torch.cat(divergences, dim=1))


def _read(
    model: GPT, x: Tensor, idx: Tensor, k: int, progress: Progress
) -> tuple[list[list[tuple[Tensor, ...]]], list[Tensor]]:
    """Return what `_described` gives for each layer and some positions at a time, and KL divergences.

    x: hidden states after ln_f, (n_layer, T, C). The divergences are those from the last layer, (n_layer, positions).
    """
    n_layer, T, _ = x.shape
    layers: list[list[tuple[Tensor, ...]]] = [[] for _ in range(n_layer)]
    divergences: list[Tensor] = []
    positions = max(1, ROWS // n_layer)
    memory = x.new_empty(n_layer * min(positions, T), model.config.vocab_size)  # of all chunks; new memory is slow
    next_tokens = idx.roll(-1)  # after the last position comes none, and the first token is in its place
    for start in range(0, T, positions):
        h = x[:, start : start + positions]
        logits = _logits(model, h.flatten(0, 1), memory).unflatten(0, h.shape[:2])  # (n_layer, positions, V)
        chunk_targets = next_tokens[start : start + positions]
        for some, targets in zip(logits.split(CACHED_ROWS, dim=1), chunk_targets.split(CACHED_ROWS), strict=True):
            last = _log_probs(some[-1])
            probs = last.exp()
            kl: list[Tensor] = []
            for layer, found in enumerate(layers):
                own = last if layer == n_layer - 1 else _log_probs(some[layer])
                kl.append((probs * (last - own)).sum(dim=1))
                found.append(_described(own, targets, k))
            divergences.append(torch.stack(kl))
        progress(min(start + positions, T), T)
    return layers, divergences


def _logits(model: GPT, h: Tensor, memory: Tensor) -> Tensor:
    """Return the logits (N, V) of hidden states after ln_f, (N, C), as `GPT.head` does, but faster on a CPU.

    They lie in the first rows of `memory`, (N or more, V).
    """
    embeddings = model.transformer.wte.weight
    logits = memory[: len(h)]
    parts = logits.split(CACHED_EMBEDDINGS, dim=1)
    for part, out in zip(embeddings.split(CACHED_EMBEDDINGS), parts, strict=True):
        torch.mm(h, part.T, out=out)
    return logits


def _log_probs(logits: Tensor) -> Tensor:
    """Return log-probabilities (positions, V) of logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)


def _described(log_probs: Tensor, targets: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return the fields of Predictions for log-probabilities (positions, V), all of length `positions`."""
    top = log_probs.topk(min(k, log_probs.size(1)), dim=1)
    log_prob = log_probs.gather(1, targets[:, None])
    rank = 1 + (log_probs > log_prob).sum(dim=1, dtype=torch.int32).long()
    probs = log_probs.softmax(dim=1)  # takes half the time of exp
    return top.indices, top.values, -torch.linalg.vecdot(probs, log_probs), log_prob[:, 0], rank


def _joined(chunks: Sequence[tuple[Tensor, ...]], length: int) -> Predictions:
    """Return chunks of positions as one; the last position has no next token. Raises UserError."""
    top_ids, top_log_probs, entropy, log_prob, rank = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    require(bool(entropy.isfinite().all()), "the model gives numbers that are not finite; its weights are damaged")
    return Predictions(top_ids, top_log_probs, entropy, log_prob[: length - 1], rank[: length - 1])
