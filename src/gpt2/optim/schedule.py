"""The learning rate as a function of the optimizer step."""

import math

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
