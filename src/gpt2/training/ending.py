"""When a run ends: its budgets of updates, tokens and epochs, and its patience."""

from collections.abc import Callable

from gpt2.checkpoint import TrainState
from gpt2.errors import UserError
from gpt2.training.config import TrainConfig


def last_step(config: TrainConfig, train_tokens: int, state: TrainState, note: Callable[[str], None]) -> int:
    """Updates made in all when the smallest of max_iters, max_tokens and max_epochs is used up.

    train_tokens: how many the dataset has, that is how many an epoch has. `note` is told where it is not max_iters.
    Raises UserError for a budget that is less than an update.
    """
    per_update = config.tokens_per_step
    budgets = {"max_tokens": config.max_tokens, "max_epochs": int(config.max_epochs * train_tokens)}
    ends = {"max_iters": config.max_iters}
    for name in budgets:
        if value := getattr(config, name):
            if budgets[name] < per_update:
                raise UserError(
                    f"{name}={value} is {budgets[name]:,} tokens, less than the {per_update:,} of one update; "
                    f"raise --{name}, or lower --batch_size or --gradient_accumulation_steps"
                )
            ends[name] = state.step + max(0, budgets[name] - state.tokens) // per_update
    first = min(ends, key=lambda name: ends[name])
    if first != "max_iters":
        note(f"{first}={getattr(config, first)} ends the run at step {ends[first]:,}")
    return ends[first]


def evaluations_since(best_step: int, step: int, interval: int) -> int:
    """Evaluations, one every `interval` updates, after the one of the best step, up to that of `step`.

    No count is kept, so that a run that is resumed ends where it would have ended.
    """
    return step // interval - best_step // interval
