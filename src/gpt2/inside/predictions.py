"""What a model predicts at each token of a text: the losses, and the logit lens of every layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import require
from gpt2.inside.forward import Progress, no_progress, reading, require_text, trace
from gpt2.model import GPT

POSITIONS = 128
"""Number of positions whose logits exist at a time. In float32 they take 26 MB with GPT-2's vocabulary."""


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


def losses(model: GPT, idx: Tensor, k: int = 5) -> Predictions:
    """Return the loss, rank and entropy at each position of a text, and the k likeliest tokens. idx: int64 (T,).

    The first token has no loss, because nothing comes before it. Dropout is off. Raises UserError for a text that is
    empty or longer than the context, for a model with replaced parts and for numbers that are not finite.
    """
    require_text(model, idx)
    with reading(model):
        x = model.hidden(idx[None])[0]
        found = [_described(_log_probs(model, h), t, k) for h, t in _chunks(x, idx)]
    return _joined(found, len(idx))


def logit_lens(model: GPT, idx: Tensor, k: int = 5, progress: Progress = no_progress) -> Lens:
    """Return the predictions of every layer for a text idx, int64 (T,): its hidden state, through ln_f and the head.

    The last layer's are those of the model. Logits exist of two layers and of some positions at a time. progress:
    receives the number of positions done and T. Errors are those of `losses`.
    """
    streams = trace(model, idx).streams[1:]  # (n_layer, T, C)
    layers: list[list[tuple[Tensor, ...]]] = [[] for _ in streams]
    divergences: list[Tensor] = []
    done = 0
    with reading(model):
        for x, targets in _chunks(streams.transpose(0, 1), idx):
            last = _log_probs(model, model.transformer.ln_f(x[:, -1]))  # (positions, V)
            kl: list[Tensor] = []
            for layer, found in enumerate(layers):
                is_last = layer == len(layers) - 1
                own = last if is_last else _log_probs(model, model.transformer.ln_f(x[:, layer]))
                kl.append((last.exp() * (last - own)).sum(dim=1))
                found.append(_described(own, targets, k))
            divergences.append(torch.stack(kl))
            done += len(x)
            progress(done, len(idx))
    by_layer = [vars(_joined(found, len(idx))) for found in layers]
    stacked = {name: torch.stack([one[name] for one in by_layer]) for name in by_layer[0]}
    return Lens(Predictions(**stacked), torch.cat(divergences, dim=1))


def _chunks(x: Tensor, idx: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the hidden states (T, …) in chunks of positions, each with the tokens that come next.

    After the last position comes none, and the first token is in its place.
    """
    return list(zip(x.split(POSITIONS), idx.roll(-1).split(POSITIONS), strict=True))


def _log_probs(model: GPT, h: Tensor) -> Tensor:
    """Return log-probabilities (positions, V) of hidden states after ln_f, (positions, C)."""
    logits = model.head(h)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)


def _described(log_probs: Tensor, targets: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return the fields of Predictions for log-probabilities (positions, V), all of length `positions`."""
    top = log_probs.topk(min(k, log_probs.size(1)), dim=1)
    log_prob = log_probs.gather(1, targets[:, None])
    rank = 1 + (log_probs > log_prob).sum(dim=1)
    return top.indices, top.values, -(log_probs.exp() * log_probs).sum(dim=1), log_prob[:, 0], rank


def _joined(chunks: Sequence[tuple[Tensor, ...]], length: int) -> Predictions:
    """Return chunks of positions as one; the last position has no next token. Raises UserError."""
    top_ids, top_log_probs, entropy, log_prob, rank = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    require(bool(entropy.isfinite().all()), "the model gives numbers that are not finite; its weights are damaged")
    return Predictions(top_ids, top_log_probs, entropy, log_prob[: length - 1], rank[: length - 1])
