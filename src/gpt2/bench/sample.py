"""How fast a model decodes."""

import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.device import synchronize
from gpt2.errors import UserError
from gpt2.generation.engine import stream_tokens
from gpt2.model import GPT


@dataclass(frozen=True)
class DecodingSpeed:
    """What so many rounds gave."""

    tokens_per_second: float
    """The median round's, after its first token."""
    slowest: float
    fastest: float
    seconds_to_first: float
    """Median time to the first token after the prompt."""
    bytes_per_second: float
    """Weights, in the format they are stored in, times tokens a second: what decoding one text is bound by."""


def measure(model: GPT, *, prompt_tokens: int, new_tokens: int, rounds: int, dtype: str) -> DecodingSpeed:
    """Decode `new_tokens` after a prompt of random tokens, the likeliest each time; one round more is not timed.

    Raises UserError for numbers below what can be measured, and where all does not fit the model's positions.
    """
    least = {"prompt_tokens": (prompt_tokens, 1), "new_tokens": (new_tokens, 2), "rounds": (rounds, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise UserError(f"{name} is {value}; it must be at least {smallest}")
    if prompt_tokens + new_tokens > (context := model.config.block_size):
        raise UserError(
            f"prompt_tokens={prompt_tokens} and new_tokens={new_tokens} are more than the model's {context} positions"
        )
    weights = list(model.parameters())
    device = weights[0].device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator).to(device)
    model.eval()
    firsts, rates = [], []
    for number in range(rounds + 1):
        tokens = stream_tokens(model, prompt, temperature=0, dtype=dtype)
        synchronize(device)
        began = time.perf_counter()
        next(tokens)
        synchronize(device)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            next(tokens)
        synchronize(device)
        if number:
            firsts.append(first - began)
            rates.append((new_tokens - 1) / (time.perf_counter() - first))
    rate = statistics.median(rates)
    stored = sum(p.numel() * p.element_size() for p in weights)
    return DecodingSpeed(rate, min(rates), max(rates), statistics.median(firsts), stored * rate)
