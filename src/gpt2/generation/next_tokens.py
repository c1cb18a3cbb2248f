"""Draws the next token of each of several texts, each in its own way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.generation.sampling import Sampling, biased, choose, log_probs, penalized, uniform
from gpt2.generation.slots import Text


@dataclass(frozen=True)
class Drawn:
    """Tokens of one step on the device, which the host has not read yet."""

    texts: Sequence[Text]
    ids: Tensor
    """int64 (B,)"""
    is_finite: Tensor
    """A scalar: whether the logits were finite."""
    logprobs: list[tuple[Tensor, Tensor, Tensor] | None]
    """For each text that wants them: log-probability of the token, the largest ones, and their ids."""


def draw_next(texts: Sequence[Text], logits: Tensor) -> Drawn:
    """Draw a token for each text from its row of logits, float32 (B, V), and count it there."""
    noise = [uniform(text.request.seed, text.n_drawn) for text in texts]
    u = torch.tensor(noise, dtype=torch.float64, device=logits.device)
    ids = torch.empty(len(texts), dtype=torch.int64, device=logits.device)
    alike: dict[Sampling, list[int]] = {}
    for row, text in enumerate(texts):
        alike.setdefault(text.request.sampling, []).append(row)
    for sampling, rows in alike.items():
        some = slice(None) if len(alike) == 1 else rows
        ids[some] = choose(_adjusted(logits[some], [texts[row] for row in rows]), sampling, u[some])
    wanted = [text.request.n_logprobs for text in texts]
    logprobs = [None if n is None else log_probs(logits[row], ids[row], n) for row, n in enumerate(wanted)]
    for text, drawn in zip(texts, ids, strict=True):
        text.n_drawn += 1
        text.count(drawn)
    return Drawn(texts, ids, logits.amax().isfinite(), logprobs)


def _adjusted(logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Return logits (B, V) with bias and penalties of texts that are sampled in the same way."""
    sampling = texts[0].request.sampling
    logits = biased(logits, sampling)
    if not sampling.counts_tokens:
        return logits
    rows = [
        penalized(row, sampling, *text.counted(row.size(-1), row.device))
        for row, text in zip(logits, texts, strict=True)
    ]
    return torch.stack(rows)
