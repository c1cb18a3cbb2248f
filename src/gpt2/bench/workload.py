"""What a run does besides optimizer steps: how often, with how many tokens, and the disk space that it fills."""

import math
from dataclasses import dataclass

from gpt2 import accounting
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig

HELLASWAG_TASKS = 10_042
"""Number of tasks in HellaSwag's validation split."""
HELLASWAG_TOKENS = 400
"""Approximate number of tokens in the four texts of a task."""
LOG_BYTES = 350
"""Approximate size of the record of an optimizer step in log.jsonl, in bytes."""
CHECKPOINT_SPEED = 250e6
"""Bytes per second at which a checkpoint is written and hashed, as docs/distributed.md measures it."""


@dataclass(frozen=True)
class Workload:
    """A workload counts what a run does."""

    steps: int
    """Number of optimizer steps."""
    tokens: int
    """Number of training tokens."""
    evaluations: int
    """Number of evaluations of the loss."""
    evaluated_tokens: int
    """Number of tokens that all evaluations compute, HellaSwag's included; 0 where the dataset's size is needed and
    unknown."""
    sampled_tokens: int
    """Number of tokens that all samples have at most."""
    checkpoints: int
    """Number of checkpoints that are written, at most."""
    kept: int
    """Number of checkpoints that exist at one time, at most."""
    checkpoint: int
    """Size of a checkpoint in bytes."""
    snapshots: int
    """Number of snapshots, all of which are kept."""
    snapshot: int
    """Size of a snapshot in bytes."""

    @property
    def disk(self) -> int:
        """Return the bytes that the run's folder takes, at most."""
        return self.kept * self.checkpoint + self.snapshots * self.snapshot + self.log

    @property
    def log(self) -> int:
        """Return the approximate size of log.jsonl in bytes."""
        return self.steps * LOG_BYTES


@dataclass(frozen=True)
class Time:
    """A time says how many seconds each kind of work takes."""

    training: float
    evaluation: float
    sampling: float
    checkpoints: float
    snapshots: float

    @property
    def total(self) -> float:
        """Return the seconds from the first optimizer step to the end."""
        return self.training + self.evaluation + self.sampling + self.checkpoints + self.snapshots


@dataclass(frozen=True)
class Speed:
    """A speed says how fast a machine computes a model."""

    tokens_per_second: float
    """Training tokens per second of all processes together."""
    evaluated_per_second: float
    """Tokens per second of evaluations, of all processes together."""
    sampled_per_second: float
    """Tokens per second of samples."""

    def time(self, work: Workload) -> Time:
        """Return the time of a workload at this speed."""
        return Time(
            training=work.tokens / self.tokens_per_second,
            evaluation=work.evaluated_tokens / self.evaluated_per_second,
            sampling=work.sampled_tokens / self.sampled_per_second,
            checkpoints=work.checkpoints * work.checkpoint / CHECKPOINT_SPEED,
            snapshots=work.snapshots * work.snapshot / CHECKPOINT_SPEED,
        )


def workload(config: TrainConfig, shape: GPTConfig, steps: int, splits: dict[str, int]) -> Workload:
    """Return the workload of a run of `steps` optimizer steps.

    splits: number of tokens of `train` and `val`, as far as they are known.
    """
    batch = (config.eval_iters or 0) * config.batch_size * config.block_size
    per_split = [min(batch, size) if batch else size for size in (splits.get(s, batch) for s in ("train", "val"))]
    evaluations = _occasions(steps, config.eval_interval or 0) or 1  # without an interval there is one at the end
    tasks = min(config.hellaswag_limit or HELLASWAG_TASKS, HELLASWAG_TASKS)
    in_tasks = _occasions(steps, config.hellaswag_interval) * tasks * HELLASWAG_TOKENS
    samplings = _times(steps, config.sample_interval) + (1 if config.sample_interval else 0)
    saved = _multiples(steps, config.eval_interval or 0, config.checkpoint_interval)
    parameters = accounting.num_params(shape)
    in_matrices = 12 * shape.n_layer * shape.n_embd**2 if config.optimizer == "muon" else 0
    return Workload(
        steps=steps,
        tokens=steps * config.tokens_per_step,
        evaluations=evaluations,
        evaluated_tokens=evaluations * sum(per_split) + in_tasks,
        sampled_tokens=samplings * config.sample_tokens * config.num_samples * len(config.prompts),
        checkpoints=saved,
        kept=min(saved, config.keep_checkpoints + 2) if config.keep_checkpoints else saved,
        checkpoint=12 * parameters - 4 * in_matrices,  # Muon's state has one number per parameter, AdamW's two
        snapshots=_snapshots(steps, config.snapshot_interval),
        snapshot=2 * parameters,
    )


def _snapshots(steps: int, interval: int | str) -> int:
    """Return the number of snapshots: at the start, at every step of the interval, and at the end."""
    if isinstance(interval, int):
        return _occasions(steps, interval)
    powers = steps.bit_length()  # 1, 2, 4, … up to `steps`
    return 1 + powers + (1 if steps & (steps - 1) else 0)  # and at the end


def _times(steps: int, interval: int) -> int:
    """Return the number of multiples of `interval` from 1 to `steps`; an interval of 0 has none."""
    return steps // interval if interval else 0


def _occasions(steps: int, interval: int) -> int:
    """Return how often something happens at the start, at every multiple of `interval`, and at the end."""
    return 1 + _times(steps, interval) + (1 if steps % interval else 0) if interval else 0


def _multiples(steps: int, first: int, second: int) -> int:
    """Return the number of steps that are multiples of an interval or the last step."""
    both = _times(steps, math.lcm(first, second)) if first and second else 0
    is_counted = any(interval and steps % interval == 0 for interval in (first, second))
    return _times(steps, first) + _times(steps, second) - both + (0 if is_counted else 1)
