"""One optimizer update, from token offsets to new weights."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.data.batches import align, document_numbers, gather, micro_batches, sample_starts
from gpt2.device import autocast
from gpt2.distributed.parts import whole
from gpt2.optim.optimizers import set_learning_rate, skip_if
from gpt2.optim.schedule import learning_rate
from gpt2.training.config import TrainConfig
from gpt2.training.setup import Run
from gpt2.training.stopwatch import Stopwatch


@dataclass(frozen=True)
class StepResult:
    """What an update gave. The tensors are scalars still on the device, so that nobody waits for them."""

    loss: Tensor
    """Mean loss over all tokens of the update, before it."""
    grad_norm: Tensor
    """Norm of the gradient before clipping."""
    lr: float
    skipped: Tensor
    """Whether nothing was changed, because loss or gradient were not finite."""
    watch: Stopwatch
    """Its time in this process: data, forward, backward, reduce (what of it does not overlap) and optimizer."""


def train_step(run: Run) -> StepResult:
    """Make update number `run.state.step` (zero-based). The caller counts it."""
    config, step, world = run.config, run.state.step, run.world
    world.beat(f"step {step + 1}")
    watch = Stopwatch(run.device)
    losses: list[Tensor] = []
    mine = micro_batches(row_starts(run, step), config.accumulation, world.rank, world.size)
    for micro, rows in mine:
        x, y = gather(run.train_tokens, rows, config.block_size, run.device)
        watch.mark("data")
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, step, micro))
        with run.engine.micro_batch(is_last=micro == mine[-1][0]):
            with autocast(run.device, config.dtype):
                loss = run.engine.forward(x, y, document_numbers(x, run.boundary))
            watch.mark("forward")
            run.scaler.scale(loss / config.accumulation).backward()
        watch.mark("backward")
        losses.append(loss.detach())
    run.engine.finish()
    loss = world.concatenated(torch.stack(losses)).mean()
    watch.mark("reduce")

    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    grad_norm = whole(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip or float("inf")))
    lr = step_learning_rate(config, step)
    set_learning_rate(run.optimizers, lr / config.learning_rate if config.learning_rate else 0.0)
    skipped = ~torch.isfinite(loss)
    if not run.scaler.is_enabled():  # which skips what overflows by itself, as happens now and then
        skipped |= ~torch.isfinite(grad_norm)
        skip_if(run.optimizers, skipped)
    with run.changing():
        for optimizer in run.optimizers:
            run.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        run.scaler.update()
    watch.mark("optimizer")
    return StepResult(loss, grad_norm, lr, skipped, watch)


def row_starts(run: Run, step: int) -> np.ndarray:
    """Where in the training tokens the rows of an update begin, one micro-batch after the other."""
    config = run.config
    starts = sample_starts(
        run.train_tokens.lengths,
        config.block_size,
        config.data_order,
        config.seed,
        step + run.state.left_out if config.overfit_step is None else config.overfit_step,
        config.accumulation * config.batch_size,
        config.batch_size,
    )
    if config.align_documents:
        assert run.tokenizer.eot is not None, "set_up refuses this"
        starts = align(run.train_tokens, starts, config.block_size, run.tokenizer.eot)
    return starts


def dropout_seed(seed: int, step: int, micro: int) -> int:
    """Seed of the dropout masks of one micro-batch: nothing random survives from one to the next."""
    return int(np.random.SeedSequence([seed, step, micro]).generate_state(1, np.uint64)[0])


def step_learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the zero-based update `step` under a resolved configuration."""
    if not config.decay_lr:
        return config.learning_rate
    assert config.min_lr is not None and config.warmup_iters is not None and config.lr_decay_iters is not None
    return learning_rate(
        step,
        schedule=config.lr_schedule,
        peak=config.learning_rate,
        floor=config.min_lr,
        warmup_iters=config.warmup_iters,
        decay_iters=config.lr_decay_iters,
        decay_fraction=config.wsd_decay_fraction,
    )
