"""The budgets of a run: optimizer steps, tokens and epochs; and the patience of early stopping."""

from gpt2.checkpoint import TrainState
from gpt2.errors import Log, UserError
from gpt2.training.config import TrainConfig


def last_step(config: TrainConfig, train_tokens: int, state: TrainState, log: Log) -> int:
    """Return the number of optimizer steps at which the first of max_iters, max_tokens and max_epochs is reached.

    train_tokens: number of tokens in an epoch. log: receives a line where another budget than max_iters ends the run.
    Raises UserError for a budget of less than one step.
    """
    per_step = config.tokens_per_step
    budgets = {"max_tokens": config.max_tokens, "max_epochs": int(config.max_epochs * train_tokens)}
    ends = {"max_iters": config.max_iters}
    for name in budgets:
        if value := getattr(config, name):
            if budgets[name] < per_step:
                raise UserError(
                    f"{name}={value} is {budgets[name]:,} tokens, less than the {per_step:,} of one optimizer step; "
                    f"raise --{name}, or lower --batch_size or --gradient_accumulation_steps"
                )
            ends[name] = state.step + max(0, budgets[name] - state.tokens) // per_step
    first = min(ends, key=lambda name: ends[name])
    if first != "max_iters":
        log(f"{first}={getattr(config, first)} ends the run at step {ends[first]:,}")
    return ends[first]


def evaluations_since(best_step: int, step: int, interval: int) -> int:
    """Return the number of evaluations, one every `interval` steps, after the one of the best step and up to `step`.

    It follows from the steps alone, so that a resumed run ends where it would have ended.
    """
    return step // interval - best_step // interval
