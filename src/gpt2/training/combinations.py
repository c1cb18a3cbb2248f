"""Settings that are valid alone but not together."""

from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.training.setting import MICRO_BATCHES, SEED, SEQUENCES

if TYPE_CHECKING:
    from gpt2.training.config import TrainConfig


def check_combinations(config: "TrainConfig") -> None:
    """Raise UserError for two settings that do not work together."""
    if config.align_documents and config.data_order != "random":
        raise UserError(
            f"align_documents moves windows, but data_order={config.data_order} shows every token once an epoch; "
            "use --data_order=random or --align_documents=False"
        )
    SEED.check("seed + num_samples - 1", config.seed + config.num_samples - 1)
    if config.early_stopping_patience and not config.eval_interval:
        raise UserError(
            f"early_stopping_patience={config.early_stopping_patience} counts evaluations, and eval_interval=0 "
            "makes none before the end; give --eval_interval or leave --early_stopping_patience at 0"
        )
    if config.optimizer == "muon" and config.dtype == "float16":
        raise UserError("optimizer=muon does not scale gradients; use --dtype=bfloat16 or float32")
    if config.optimizer == "muon" and config.cpu_offload:
        raise UserError("optimizer=muon computes on the device; leave --cpu_offload out, or use --optimizer=adamw")


def check_batch(config: "TrainConfig") -> None:
    """Raise UserError where total_batch_size is no multiple of a micro-batch, or contradicts the accumulation."""
    if config.total_batch_size is None:
        return
    micro = config.batch_size * config.block_size
    if config.total_batch_size % micro:
        below = config.total_batch_size // micro * micro
        nearest = f"{below} or {below + micro}" if below else f"{micro}"
        raise UserError(
            f"total_batch_size={config.total_batch_size} is no multiple of batch_size·block_size = "
            f"{config.batch_size}·{config.block_size} = {micro}; the nearest that are: {nearest}"
        )
    implied = config.total_batch_size // micro
    if config.gradient_accumulation_steps not in (None, implied):
        raise UserError(
            f"total_batch_size={config.total_batch_size} means {implied} micro-batches of {micro} tokens, but "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}; give only one of the two"
        )


def check_step(config: "TrainConfig") -> None:
    """Raise UserError for an optimizer step of more sequences than there can be offsets of in memory."""
    MICRO_BATCHES.check("the number of micro-batches in an optimizer step", config.accumulation)
    SEQUENCES.check("the number of sequences in an optimizer step", config.accumulation * config.batch_size)


def check_schedule(config: "TrainConfig") -> None:
    """Raise UserError where the warmup is longer than the schedule."""
    if config.decay_lr and config.lr_schedule != "constant" and (config.warmup_iters or 0) > config.decay_end:
        raise UserError(
            f"warmup_iters={config.warmup_iters} is more than lr_decay_iters={config.decay_end}; "
            "lower --warmup_iters or raise --lr_decay_iters"
        )
