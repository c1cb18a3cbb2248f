"""A run: everything that training works with, complete when constructed."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.checkpoint import TrainState
from gpt2.data.batches import Batches
from gpt2.data.shards import Tokens
from gpt2.distributed.gradients import GradientSync
from gpt2.distributed.world import World
from gpt2.evaluation.choices import Task
from gpt2.model import GPT
from gpt2.tokenizers import Tokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.timing import Instant, Ledger


@dataclass
class Run:
    """A run holds what `training/setup.py` made of a configuration; only `state` and the fields below it change."""

    config: TrainConfig
    """The settings, with every default filled in."""
    out_dir: Path
    """The folder of the run."""
    world: World
    device: torch.device
    machine: dict[str, str | int]
    """What the last bits of a result depend on besides settings and data: device, threads, PyTorch's version, …"""
    peak_flops: float
    """Peak rate of matrix products in FLOP/s, for the MFU."""
    tokenizer: Tokenizer
    data_fingerprint: dict[str, str]
    batches: Batches
    """The sequences of every optimizer step."""
    val_tokens: Tokens
    prompts: tuple[str, ...]
    """Prompts of the samples written during training; empty without samples."""
    hellaswag: list[Task]
    """HellaSwag's tasks; empty where they are off."""
    own_layers: bool
    """Whether the model is the caller's and has other layers than GPT, so that no file describes it."""
    model: GPT
    """The plain module, which is evaluated, sampled and saved; never a compiled or wrapped one."""
    gradients: GradientSync
    """What is trained: the model's loss, compiled and wrapped, and how its gradients become one sum."""
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    """Scales float16 gradients; does nothing for other dtypes."""
    last_step: int
    """Number of optimizer steps at which the run ends: max_iters, or what the other budgets allow."""
    ledger: Ledger
    clock: Callable[[], Instant]
    """Takes the time on the device."""
    state: TrainState
    saved_step: int | None = None
    """Step of the newest checkpoint on disk; None for a run that has none yet."""
    is_consistent: bool = True
    """Whether weights, optimizer state and step count belong together; an exception while they change leaves False,
    and they must not be saved."""

    @property
    def resume_command(self) -> str:
        """The command that continues this run, with as many processes where all of them are on this machine."""
        if self.own_layers:
            return f"gpt2.train(gpt2.resume_config('{self.out_dir}'), model=…)"
        is_here = 1 < self.world.size == self.world.local_size
        nproc = f" --nproc={self.world.size}" if is_here else ""
        return f"gpt2 train --init_from=resume --out_dir={shlex.quote(str(self.out_dir))}{nproc}"
