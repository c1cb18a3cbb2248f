"""Continues prompts of token ids; `text.py` does it with text."""

from collections.abc import Sequence
from typing import Any

from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT


def complete(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int] = (),
    **changes: Any,
) -> list[list[int]]:
    """Return the `max_new_tokens` tokens that follow each prompt of token ids, or none for 0.

    seeds: one for each prompt. changes: settings of `Engine`. Raises UserError if the model gives no finite numbers.
    """
    if not max_new_tokens:
        return [[] for _ in prompts]
    pairs = zip(prompts, seeds or [0] * len(prompts), strict=True)
    requests = [Request(prompt, max_new_tokens, sampling, seed) for prompt, seed in pairs]
    longest = max(map(len, prompts), default=0) + max_new_tokens
    settings: dict[str, Any] = {"slots": max(1, len(requests)), "capacity": longest} | changes
    engine = Engine(model, **settings)
    new: dict[int, list[int]] = {id(request): [] for request in requests}
    for request in requests:
        engine.submit(request)
    for token in engine.run():
        new[id(token.request)].append(token.id)
    return list(new.values())
