"""One optimizer step, from token ids to new weights."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gpt2.device import DTYPES
from gpt2.optim.optimizers import update
from gpt2.optim.schedule import learning_rate
from gpt2.training.config import TrainConfig
from gpt2.training.run import Run
from gpt2.training.timing import Instant


@dataclass(frozen=True)
class StepResult:
    """The figures of an optimizer step. The tensors are scalars still on the device, so that nothing waits for it."""

    loss: Tensor
    """Mean loss in nats over all tokens of the step that have one, before the update."""
    grad_norm: Tensor
    """Norm of the gradient before clipping."""
    lr: float
    """Learning rate of AdamW."""
    skipped: Tensor
    """Whether nothing was changed, because loss or gradient were not finite; in float16 the gradient scaler decides
    about gradients by itself."""
    marks: list[tuple[str, Instant]]
    """When the step began, and then the end of each phase: data, forward, backward, reduce, optimizer."""


def train_step(run: Run) -> StepResult:
    """Make the zero-based optimizer step `run.state.step`. The caller counts it."""
    config, world, step, gradients = run.config, run.world, run.state.step, run.gradients
    count = run.batches.accumulation // world.size  # micro-batches of this process
    marks = [("", run.clock())]
    losses: list[Tensor] = []
    # after a loss spike, step n takes the batch of step n + skipped_batches
    for batch in run.batches.micro_batches(step + run.state.skipped_batches, world.rank, world.size, run.device):
        marks.append(("data", run.clock()))
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, step, batch.number))
        with gradients.micro_batch(is_last=len(losses) == count - 1):
            with torch.autocast(run.device.type, DTYPES[config.dtype], enabled=config.dtype != "float32"):
                loss = gradients.loss_of(batch.x, batch.y) * batch.weight
            marks.append(("forward", run.clock()))
            run.scaler.scale(loss / run.batches.accumulation).backward()
        marks.append(("backward", run.clock()))
        losses.append(loss.detach())
    gradients.finish()
    loss = torch.stack(losses)
    loss = (world.concatenated(loss) if world.size > 1 else loss).mean()
    marks.append(("reduce", run.clock()))

    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip or float("inf"))
    if hasattr(grad_norm, "full_tensor"):  # a sharded gradient's norm is one part of a sum in each process
        grad_norm = grad_norm.full_tensor()
    lr = step_learning_rate(config, step)
    skipped = ~torch.isfinite(loss)
    if not run.scaler.is_enabled():
        skipped |= ~torch.isfinite(grad_norm)
    run.is_consistent = False
    update(run.optimizers, run.scaler, lr / config.learning_rate if config.learning_rate else 0.0, skipped)
    run.is_consistent = True
    marks.append(("optimizer", run.clock()))
    return StepResult(loss, grad_norm, lr, skipped, marks)


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the seed of one micro-batch's dropout masks: nothing random survives from one to the next."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0])


def step_learning_rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate of the zero-based optimizer step `step` under a resolved configuration."""
    if not config.decay_lr:
        return config.learning_rate
    assert config.min_lr is not None and config.warmup_iters is not None and isinstance(config.lr_decay_iters, int)
    return learning_rate(
        step,
        schedule=config.lr_schedule,
        peak=config.learning_rate,
        minimum=config.min_lr,
        warmup_iters=config.warmup_iters,
        decay_iters=config.lr_decay_iters,
        decay_fraction=config.wsd_decay_fraction,
    )
