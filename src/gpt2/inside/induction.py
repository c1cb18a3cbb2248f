"""Induction heads: they find the earlier occurrence of the current token, and attend to the token after it.

Olsson et al. 2022, "In-context Learning and Induction Heads", measure them on random tokens that are repeated: there,
nothing but the earlier occurrence tells what comes next.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import require
from gpt2.inside.attention import attention_weights
from gpt2.inside.predictions import losses
from gpt2.model import GPT


@dataclass(frozen=True)
class Induction:
    """An Induction says how well a model continues repeated random tokens, and which heads look at what to copy."""

    first_loss: float
    """Mean loss of the tokens of the first half in nats, except its first token."""
    second_loss: float
    """Mean loss of the tokens of the second half in nats, except its first token."""
    heads: Tensor
    """Scores of the heads by `induction_scores`, (n_layer, nh)."""
    previous: Tensor
    """Scores of the heads by `previous_scores`, (n_layer, nh)."""

    @property
    def difference(self) -> float:
        """Return the loss of the second half minus that of the first, in nats; copying makes it negative."""
        return self.second_loss - self.first_loss


def repeated_tokens(vocab_size: int, length: int, count: int = 8, seed: int = 0) -> Tensor:
    """Return sequences of `length` different random tokens that are written twice, int64 (count, 2·length).

    Tokens of a half differ from each other, so that each has one earlier occurrence in the second half. Raises
    UserError for a length below 2, and for one above the vocabulary.
    """
    require(
        2 <= length <= vocab_size,
        f"a half has {length} different tokens; give at least 2, and at most the {vocab_size} of the vocabulary",
    )
    generator = torch.Generator().manual_seed(seed)
    half = torch.stack([torch.randperm(vocab_size, generator=generator)[:length] for _ in range(count)])
    return half.repeat(1, 2)


def induction_scores(weights: Tensor) -> Tensor:
    """Return how much each head attends to the token after the earlier occurrence, (n_layer, nh), from 0 to 1.

    weights: attention weights (n_layer, B, nh, T, T) for `repeated_tokens`. The score is the mean weight over the
    positions t of the second half, except the last one, to the position t - T/2 + 1.
    """
    half = weights.size(-1) // 2
    return weights.diagonal(1 - half, dim1=-2, dim2=-1)[..., 1:-1].mean(dim=(1, 3))


def previous_scores(weights: Tensor) -> Tensor:
    """Return the mean weight of each head to the token just before, (n_layer, nh), from 0 to 1.

    weights: attention weights (n_layer, B, nh, T, T). An induction head needs such a head in an earlier layer, which
    tells each position what came before it.
    """
    return weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(1, 3))


def induction(model: GPT, tokens: Tensor) -> Induction:
    """Return the losses and the scores of the heads of a model on repeated tokens, int64 (B, T) as `repeated_tokens`.

    Dropout is off. Raises UserError for tokens that are longer than the context, and for a model with replaced parts.
    """
    half = tokens.size(1) // 2
    found = torch.stack([losses(model, row).loss for row in tokens])  # (B, T - 1); the first is that of token 1
    weights = attention_weights(model, tokens)
    first, second = found[:, : half - 1], found[:, half:]
    return Induction(float(first.mean()), float(second.mean()), induction_scores(weights), previous_scores(weights))
