"""The learning rate as a function of the optimizer step, and the step at which a run ends."""

import math
from collections.abc import Mapping
from typing import Any

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def learning_rate(
    step: int,
    *,
    schedule: str,
    peak: float,
    minimum: float,
    warmup_iters: int,
    decay_iters: int,
    decay_fraction: float = 0.2,
) -> float:
    """Return the learning rate of the zero-based optimizer step `step`.

    It warms up linearly as peak·(step+1)/(warmup_iters+1), never from zero. Then `cosine` and `linear` fall to
    `minimum` at `decay_iters`, `constant` stays at `peak`, and `wsd` (warmup-stable-decay; Hägele et al. 2024) stays
    until the last `decay_fraction` of `decay_iters` and falls there as 1 - sqrt. All but `constant` stay at `minimum`
    afterwards.
    """
    if step < warmup_iters:
        return peak * (step + 1) / (warmup_iters + 1)
    if schedule == "constant":
        return peak
    if step >= decay_iters:
        return minimum
    # each case gives the share of the way from `minimum` to `peak`
    progress = (step - warmup_iters) / (decay_iters - warmup_iters)  # 0 … 1 while it falls
    match schedule:
        case "cosine":
            share = 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            share = 1 - progress
        case "wsd":
            decay_start = max(int((1 - decay_fraction) * decay_iters), warmup_iters)
            share = 1 - math.sqrt(max(0, step - decay_start) / (decay_iters - decay_start))
        case _:
            raise AssertionError(f"no schedule {schedule!r}")
    return minimum + share * (peak - minimum)


STEP_BUDGETS = ("max_iters", "max_tokens", "max_epochs")
"""Settings that end a run at an optimizer step."""


def steps_of_budgets(
    settings: Mapping[str, Any], tokens_per_step: int, train_tokens: int | None, step: int = 0, tokens: int = 0
) -> dict[str, int]:
    """Return the optimizer step at which each of max_iters, max_tokens and max_epochs ends a run, if it is given.

    settings: those of the run, by name. train_tokens: number of tokens in an epoch; None leaves max_epochs out.
    step, tokens: the optimizer steps made and the tokens seen so far, perhaps with other settings. Every further step
    sees tokens_per_step tokens.
    """
    ends = {"max_iters": settings["max_iters"]}
    limits = {"max_tokens": settings.get("max_tokens", 0)}
    if train_tokens is not None:
        limits["max_epochs"] = int(settings.get("max_epochs", 0) * train_tokens)
    for name, limit in limits.items():
        if settings.get(name):
            ends[name] = step + max(0, limit - tokens) // tokens_per_step
    return ends
