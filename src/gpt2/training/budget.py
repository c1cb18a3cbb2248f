"""The budgets of a run: memory, optimizer steps, tokens and epochs; and how processes share an optimizer step."""

from dataclasses import replace
from typing import Any

import torch

from gpt2 import accounting
from gpt2.accounting import Memory, Sharing
from gpt2.checkpoint import TrainState
from gpt2.device import free_memory, pick_device
from gpt2.distributed.gradients import number_of_shards
from gpt2.distributed.world import World
from gpt2.errors import Log, UserError
from gpt2.model import GPTConfig
from gpt2.optim.schedule import steps_of_budgets
from gpt2.spelling import counted
from gpt2.training.config import TrainConfig

SPARE = 0.1
"""Share of the device's memory that stays free, for libraries and for what the estimate does not count."""


def last_step(config: TrainConfig, train_tokens: int, state: TrainState, log: Log) -> int:
    """Return the number of optimizer steps at which the first of max_iters, max_tokens and max_epochs is reached.

    train_tokens: number of tokens in an epoch. log: receives a line where another budget than max_iters ends the run.
    Raises UserError for a budget of less than one step.
    """
    per_step = config.tokens_per_step
    budgets = {"max_tokens": config.max_tokens, "max_epochs": int(config.max_epochs * train_tokens)}
    for name in budgets:
        if (value := getattr(config, name)) and budgets[name] < per_step:
            raise UserError(
                f"{name}={value} is {counted(budgets[name], 'token')}, less than the {per_step:,} of one "
                f"optimizer step; raise --{name}, or lower --batch_size or --gradient_accumulation_steps"
            )
    ends = steps_of_budgets(vars(config), per_step, train_tokens, state.step, state.tokens)
    first = min(ends, key=lambda name: ends[name])
    if first != "max_iters":
        log(f"{first}={getattr(config, first)} ends the run at step {ends[first]:,}")
    return ends[first]


def budget_reached(config: TrainConfig, train_tokens: int, step: int, tokens: int) -> str:
    """Return which of max_iters, max_tokens and max_epochs ended a run, after `step` steps that saw `tokens` tokens.

    train_tokens: number of tokens in an epoch. Where several end at the same step, it is the first in this order.
    """
    ends = steps_of_budgets(vars(config), config.tokens_per_step, train_tokens, step, tokens)
    return min(ends, key=lambda name: ends[name])


def to_train_longer(config: TrainConfig, ended_by: str, train_tokens: int | None, step: int, tokens: int) -> str:
    """Return the flags that double the limits which ended a run, with which it can be resumed and goes on.

    ended_by: the setting that ended it, as in the log. train_tokens: number of tokens in an epoch, if it is known.
    step, tokens: the optimizer steps made and the tokens seen.
    """
    if ended_by in ("max_minutes", "early_stopping_patience"):
        return f"--{ended_by}={2 * getattr(config, ended_by)}".removesuffix(".0")
    doubled = {
        "max_iters": f"{2 * max(step, 1)}",
        "max_tokens": f"{2 * max(tokens, config.max_tokens)}",
        "max_epochs": f"{2 * max(tokens / (train_tokens or tokens or 1), config.max_epochs):g}",
    }
    ends = steps_of_budgets(vars(config), config.tokens_per_step, train_tokens, step, tokens)
    flags = [f"--{name}={doubled[name]}" for name, end in ends.items() if end <= step]
    return " ".join([*flags, "--lr_decay_iters=auto"])


def evaluations_since(best_step: int, step: int, interval: int) -> int:
    """Return the number of evaluations, one every `interval` steps, after the one of the best step and up to `step`.

    It follows from the steps alone, so that a resumed run ends where it would have ended.
    """
    return step // interval - best_step // interval


def require_memory(config: TrainConfig, shape: GPTConfig) -> None:
    """Raise UserError where memory is too small to make a model of this shape, or to train it with the settings.

    The model is made in CPU memory. What is counted for the training on its device is certainly needed there: shards
    of other processes and what a system may keep elsewhere are not.
    """
    size = accounting.num_params(shape)
    _require("the parameters of the model", 4 * size, torch.device("cpu"))
    if config.eval_only:
        return
    needs = _memory(config, shape, Sharing())
    state = needs.parameters + needs.gradients + (0 if config.zero_stage else needs.optimizer)
    where = pick_device(config.device)
    _require(
        "a micro-batch and the state of the training",
        (state if config.parallel == "ddp" else 0)
        + needs.activations // 2
        + _square_bytes(config, shape, where.type),
        where,
    )


def sharing_of(config: TrainConfig, processes: int, of_a_machine: int) -> Sharing:
    """Return how processes share a model. With hsdp, those of a machine share it as with fsdp."""
    if config.parallel == "hsdp":
        return Sharing(config.hsdp_shards or min(processes, of_a_machine), "fsdp")
    return Sharing(processes, config.parallel, config.zero_stage)


def training_memory(
    config: TrainConfig, shape: GPTConfig, sharing: Sharing, device: str, available: int
) -> tuple[Memory, bool]:
    """Return the memory of each process that trains, and whether compiled code recomputes GELU and LayerNorm.

    Their outputs are recomputed in the backward pass on a CPU, where no cost was measured (docs/experiments.md). On a
    GPU this costs about 2 % of the time, so it is done only where a process would need more than nine tenths of the
    `available` bytes otherwise. config: resolved settings. device: kind of device.
    """

    accumulates = sharing.processes > 1 or config.accumulation > 1
    kept = _memory(config, shape, sharing, recomputes=False, accumulates=accumulates, device=device)
    if device == "cuda" and kept.total <= (1 - SPARE) * available:
        return kept, False
    return _memory(config, shape, sharing, recomputes=True, accumulates=accumulates, device=device), True


def _memory(config: TrainConfig, shape: GPTConfig, sharing: Sharing, **more: Any) -> Memory:
    """Return `accounting.memory` with the settings that it depends on, and `more` of its arguments."""
    return accounting.memory(
        shape,
        sharing,
        config.batch_size,
        half=config.dtype in ("bfloat16", "float16"),
        optimizer=config.optimizer,
        compiled=config.compile,
        activation_checkpointing=config.activation_checkpointing,
        **more,
    )


def masks_by_blocks(config: TrainConfig, kind: str) -> bool:
    """Return whether documents are masked by blocks, on a kind of device: compiled on a GPU, and without dropout.

    FlexAttention has no dropout. Uncompiled it computes all scores, and on a CPU it has no backward pass.
    """
    return kind == "cuda" and config.compile and config.flash and config.document_mask and not config.dropout


def _square_bytes(config: TrainConfig, shape: GPTConfig, kind: str) -> int:
    """Return the bytes of what has a number for every pair of positions: the document mask, and unfused attention."""
    pairs = config.batch_size * shape.block_size**2
    kept = 1 if config.activation_checkpointing else shape.n_layer
    masks = config.document_mask and not masks_by_blocks(config, kind)
    return pairs * (masks + (0 if config.flash else 4 * shape.n_head * kept))


def log_late_decay(config: TrainConfig, last: int, log: Log) -> None:
    """Log where a run ends, at the step `last`, before its learning rate has decayed.

    This happens after `--max_iters` alone in a recipe.
    """
    if config.decay_lr and config.lr_schedule != "constant" and config.decay_end > last > 0:
        log(
            f"the learning rate decays until step {config.decay_end} (lr_decay_iters), and the run ends before that; "
            "--lr_decay_iters=auto lets both end together"
        )


def log_rising_rate(config: TrainConfig, log: Log) -> None:
    """Log where the learning rate rises to min_lr instead of falling to it.

    This happens after a small `--learning_rate` alone, for a recipe with min_lr or a resumed run.
    """
    rate, end = config.learning_rate, config.min_lr or 0.0
    if config.decay_lr and config.lr_schedule != "constant" and end > rate:
        log(
            f"the learning rate rises after the warmup, because min_lr={end:g} is above learning_rate={rate:g}; "
            f"--min_lr={rate / 10:g} lets it fall"
        )


def _require(what: str, needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on {device.type}; take "
            "a smaller model, lower --batch_size or --block_size, or add --activation_checkpointing"
        )


def fit_to_processes(config: TrainConfig, world: World, log: Log) -> TrainConfig:
    """Return the settings with micro-batches that the processes of the world can share.

    Raises UserError where that is not possible.
    """
    config = split_batch(config, world, log)
    check_processes(config, world)
    return config


def split_batch(config: TrainConfig, world: World, log: Log) -> TrainConfig:
    """Return the settings with smaller micro-batches where their number is no multiple of the number of processes.

    The sequences of an optimizer step and those of an evaluation stay the same, so that both differ only by rounding,
    and by the masks of dropout, which are drawn for each micro-batch. Settings stay unchanged where a split would
    change more: with `deterministic`, which promises the same bits, and with data_order=sequential, where the
    micro-batch determines what is skipped at the end of a token file.
    """
    before, size = config.accumulation, config.batch_size
    if before % world.size == 0 or config.deterministic or config.data_order == "sequential":
        return config
    pieces = next((n for n in range(2, size + 1) if size % n == 0 and before * n % world.size == 0), None)
    if pieces is None:
        return config
    log(
        f"batch_size {size} × {before} is split into batch_size {size // pieces} × {before * pieces}, so that "
        f"{world.size} processes can share the optimizer step; its sequences stay the same"
    )
    return replace(
        config,
        batch_size=size // pieces,
        gradient_accumulation_steps=before * pieces,
        eval_iters=(config.eval_iters or 0) * pieces,
    )


def check_processes(config: TrainConfig, world: World) -> None:
    """Raise UserError where the processes of the world cannot share the work with these settings."""
    micro_batches, parallel = config.accumulation, config.parallel
    if micro_batches % world.size:
        below = micro_batches // world.size * world.size
        nearest = f"{below} or {below + world.size}" if below else f"{world.size}"
        raise UserError(
            f"gradient_accumulation_steps={micro_batches}, which counts those of all processes, cannot be shared by "
            f"{world.size} of them; the nearest numbers that can: {nearest}"
        )
    if config.deterministic and world.size & (world.size - 1):
        raise UserError(f"deterministic=True needs 1, 2, 4, 8, … processes, and there are {world.size}")
    if parallel == "ddp":
        return
    if config.deterministic:
        raise UserError(
            "deterministic=True needs gradients that are not sharded; use it with parallel=ddp, with or without "
            "zero_stage"
        )
    if config.zero_stage:
        raise UserError(f"parallel={parallel} shards the optimizer state too; leave --zero_stage out")
    if config.dtype == "float16":
        raise UserError(f"parallel={parallel} does not scale gradients; use --dtype=bfloat16 or float32")
    shards = number_of_shards(world, parallel, config.hsdp_shards)
    if world.size > 1 and (shards < 2 or world.size % shards):
        raise UserError(
            f"parallel=hsdp cannot divide {world.size} processes into groups of {shards} that share a model; set "
            "--hsdp_shards to a divisor of the number of processes, at least 2, or use --parallel=ddp"
        )
