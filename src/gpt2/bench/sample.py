"""The speed of decoding."""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.device import synchronize
from gpt2.errors import UserError
from gpt2.formats.open import build, open_model
from gpt2.generation.engine import stream_tokens
from gpt2.model import GPT, GPTConfig
from gpt2.training.setting import CONTEXT, SAMPLES, at_least


@dataclass(frozen=True)
class DecodingSpeed:
    """The speed of decoding one text, over several rounds."""

    tokens_per_second: float
    """Speed of the median round, after its first token."""
    slowest: float
    """Tokens per second of the slowest round."""
    fastest: float
    """Tokens per second of the fastest round."""
    seconds_to_first: float
    """Median time from the prompt to the first token."""
    bytes_per_second: float
    """Bytes of the stored weights times tokens per second. Memory bandwidth limits this when one text is decoded."""


def open_network(model: str) -> GPT:
    """Open a model by path or name, or make one of random weights for `random:SIZE`. Raises UserError."""
    kind, _, size = model.partition(":")
    return GPT(GPTConfig.preset(size)) if kind == "random" else build(open_model(model))


def measure(model: GPT, *, prompt_tokens: int, new_tokens: int, rounds: int, dtype: str) -> DecodingSpeed:
    """Decode `new_tokens` greedily after a prompt of random tokens, in `rounds` rounds after one of warmup.

    Raises UserError for numbers that are too small to measure, and where prompt and new tokens do not fit the model's
    context.
    """
    CONTEXT.check("prompt_tokens", prompt_tokens)
    at_least(2).check("new_tokens", new_tokens)
    SAMPLES.check("rounds", rounds)
    if prompt_tokens + new_tokens > (context := model.config.block_size):
        raise UserError(
            f"prompt_tokens={prompt_tokens} and new_tokens={new_tokens} are more than the model's {context} positions"
        )
    weights = list(model.parameters())
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator).to(weights[0].device)
    model.eval()
    timed = [_decode(model, prompt, new_tokens, dtype) for _ in range(rounds + 1)][1:]
    firsts, rates = zip(*timed, strict=True)
    rate = statistics.median(rates)
    stored = sum(p.numel() * p.element_size() for p in weights)
    return DecodingSpeed(rate, min(rates), max(rates), statistics.median(firsts), stored * rate)


def _decode(model: GPT, prompt: Tensor, new_tokens: int, dtype: str) -> tuple[float, float]:
    """Decode once; return the seconds to the first token, and the tokens per second after it."""
    tokens = stream_tokens(model, prompt, temperature=0, dtype=dtype)
    synchronize(prompt.device)
    began = time.perf_counter()
    next(tokens)
    synchronize(prompt.device)
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        next(tokens)
    synchronize(prompt.device)
    return first - began, (new_tokens - 1) / (time.perf_counter() - first)
