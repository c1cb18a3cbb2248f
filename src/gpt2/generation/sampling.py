"""Chooses the next token from logits.

The functions are pure, and a row of their inputs gives the same result whatever the other rows are. The only random
number of a token is `uniform(seed, index)`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.errors import UserError, require
from gpt2.generation.arguments import biases, require_number, require_whole_number, token_ids
from gpt2.generation.transfer import send

UNIFORMS = 64
"""Number of random numbers of a text that are made at a time."""
LARGEST_BIAS = 1e30
"""Largest number that `logit_bias` adds; its sum with a logit is finite in float32."""
LEAST_P = 1e-30
"""Smallest probability that `top_p` counts; a smaller one could become 0 in float32."""


@dataclass(frozen=True)
class Sampling:
    """Says how the next token is chosen. Raises UserError for values that mean nothing.

    The order is that of transformers: bias, penalties, temperature, top_k, top_p, min_p.
    """

    temperature: float = 1.0
    """A lower one is more predictable, a higher one more varied. 0 takes the likeliest token."""
    top_k: int | None = None
    """Number of likeliest tokens to choose from; None or 0 means all."""
    top_p: float | None = None
    """Choose from the fewest likeliest tokens whose probabilities reach this (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Choose from tokens at least this many times as likely as the likeliest (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt and text, and multiplies negative ones (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Is subtracted from the logits of tokens that the text contains."""
    frequency_penalty: float = 0.0
    """Is subtracted from a token's logit once for each time that the text contains it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its logit; -inf bans a token. A mapping becomes pairs."""
    allowed: tuple[int, ...] | None = None
    """The only ids to choose from; None means all. A list becomes a tuple."""

    def __post_init__(self) -> None:
        for name in ("temperature", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            require_number(name, getattr(self, name))
        if self.top_k is not None:
            require_whole_number("top_k", self.top_k)
        if self.top_p is not None:
            require_number("top_p", self.top_p)
        object.__setattr__(self, "logit_bias", biases("logit_bias", self.logit_bias))
        if self.allowed is not None:
            object.__setattr__(self, "allowed", token_ids("allowed", self.allowed))
        if self.temperature != 0 and not 1e-3 <= self.temperature <= 1e3:
            raise UserError(
                f"temperature is {self.temperature}; it must be 0 (the likeliest token) or lie in 0.001 … 1000"
            )
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p is {self.top_p}; it must lie in (0, 1]")
        require(0 <= self.min_p <= 1, f"min_p is {self.min_p}; it must lie in [0, 1]")
        require(
            1e-3 <= self.repetition_penalty <= 1e3,
            f"repetition_penalty is {self.repetition_penalty}; it must lie in 0.001 … 1000",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            require(-100 <= value <= 100, f"{name} is {value}; it must lie in -100 … 100")
        bad = [bias for _, bias in self.logit_bias if not bias <= LARGEST_BIAS]
        require(not bad, f"logit_bias has the value {bad[:1]}; it must be a number of at most {LARGEST_BIAS:g}")
        require(self.allowed is None or len(self.allowed) > 0, "allowed holds no token id; give at least one")

    @property
    def counts_tokens(self) -> bool:
        """Whether the choice depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def uniform(seed: int, index: int) -> float:
    """Return the random number in [0, 1) that draws token `index` of a text: 53 bits of Philox4x64's output.

    The seed is the key and the index the counter (Salmon et al. 2011), so that no other draw changes it.
    """
    return _uniforms(seed, index // UNIFORMS)[index % UNIFORMS]


@functools.lru_cache(maxsize=1024)
def _uniforms(seed: int, block: int) -> list[float]:
    """Return `uniform` of consecutive numbers of tokens, because starting the generator takes longest."""
    raw = np.random.Philox(key=seed, counter=block * UNIFORMS).random_raw(4 * UNIFORMS)[::4]  # 4 words per counter
    return ((raw >> 11) * 2.0**-53).tolist()


def choose(logits: Tensor, sampling: Sampling, noise: Sequence[float]) -> Tensor:
    """Return one token for each row of logits (B, V): int64 (B,). noise: B numbers of `uniform`."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, ids = candidates(logits, sampling)
    return draw(probabilities, ids, send(torch.tensor(noise, dtype=torch.float64), logits.device))


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return what remains of logits (B, V) to draw from: probabilities (B, K) and their ids, ascending, int64 (B, K).

    A probability is relative to the others and may be 0. The ids are None for 0 … V - 1. They ascend so that two
    almost equal logits that swap their order, as the last bits of a batch do, move no other token's share.
    """
    logits = logits.float() / sampling.temperature
    top_p = 1.0 if sampling.top_p is None else max(sampling.top_p, LEAST_P)
    k = min(sampling.top_k or logits.size(-1), logits.size(-1))
    if k == logits.size(-1) and top_p == 1:
        return keep_min_p(logits.softmax(dim=-1), sampling.min_p), None
    ordered, ids = logits.topk(k) if k < logits.size(-1) else logits.sort(dim=-1, descending=True)
    probabilities = keep_min_p(keep_top_p(ordered.softmax(dim=-1), top_p), sampling.min_p)
    ids, order = ids.sort(dim=-1)
    return probabilities.gather(-1, order), ids


def keep_top_p(ordered: Tensor, p: float) -> Tensor:
    """Return descending probabilities (B, K) with all set to 0 except the fewest whose sum reaches `p`."""
    before = running_sums(ordered) - ordered  # probability of all likelier tokens
    return ordered.masked_fill(before >= p, 0.0) if p < 1 else ordered


def keep_min_p(probabilities: Tensor, p: float) -> Tensor:
    """Return probabilities (B, K) with those set to 0 that are below `p` times the largest of the row."""
    if p == 0:
        return probabilities
    return probabilities.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), 0.0)


def draw(probabilities: Tensor, ids: Tensor | None, noise: Tensor) -> Tensor:
    """Draw an id for each row of relative probabilities (B, K), where the running sum passes `noise`: int64 (B,)."""
    sums = running_sums(probabilities.double())
    index = torch.searchsorted(sums, noise[:, None] * sums[:, -1:], right=True).clamp_(max=sums.size(-1) - 1)
    return (index if ids is None else ids.gather(-1, index))[:, 0]


def running_sums(numbers: Tensor) -> Tensor:
    """Return the sums of each number and those before it, along the last axis of numbers (B, K)."""
    if torch.are_deterministic_algorithms_enabled():  # deterministic sums of floats exist on CUDA since PyTorch 2.14
        return numbers.cpu().cumsum(dim=-1).to(numbers.device)
    return numbers.cumsum(dim=-1)


def log_probs(logits: Tensor, ids: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities of ids (...,) in logits (..., V), and the n largest with their ids, (..., n) each."""
    values = logits.log_softmax(dim=-1)
    top, top_ids = values.topk(min(n, values.size(-1)))
    return values.gather(-1, ids[..., None])[..., 0], top, top_ids


def biased(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits (B, V) with the bias added, and all except the allowed ids set to -inf."""
    if sampling.logit_bias:
        ids, values = (send(torch.tensor(column), logits.device) for column in zip(*sampling.logit_bias, strict=True))
        logits = logits.index_add(-1, ids, values.to(logits.dtype).expand(len(logits), -1))
    if sampling.allowed is not None:
        allowed = send(torch.tensor(sampling.allowed), logits.device)
        logits = torch.full_like(logits, float("-inf")).index_copy(-1, allowed, logits[:, allowed])
    return logits


def penalized(logits: Tensor, sampling: Sampling, seen: Tensor, counts: Tensor) -> Tensor:
    """Return logits (V,) with the penalties applied.

    seen: bool (V,), the tokens of prompt and text. counts: (V,), how often each token is in the text.
    """
    factor = torch.where(logits > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty)
    logits = torch.where(seen, logits * factor, logits)
    return logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
