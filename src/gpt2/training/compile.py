"""Compilation: how the training loss is compiled, and tried before a run begins."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpt2 import device
from gpt2.accounting import Sharing
from gpt2.chunked_loss import TrainingLoss
from gpt2.data.batches import Batches, document_mask, gather
from gpt2.errors import Log, UserError, first_line
from gpt2.model import GPTConfig
from gpt2.training.budget import training_memory
from gpt2.training.config import TrainConfig


def compiled_loss(loss_of: TrainingLoss, batches: Batches, config: TrainConfig, log: Log) -> nn.Module:
    """Return the training loss, compiled where the settings ask for it and it works, and tried on one micro-batch.

    Raises UserError where a micro-batch does not fit the device's memory.
    """
    where = next(loss_of.parameters()).device
    x, y = gather(batches.tokens, [0] * config.batch_size, config.block_size, where)
    mask = document_mask(x, batches.mask_token)

    def attempt(forward: Callable[..., Any]) -> None:
        with device.autocast(where, config.dtype):
            loss = forward(x, y, mask)
        loss.backward()
        loss_of.zero_grad(set_to_none=True)

    try:
        if config.compile:
            log("compiling the model; the first time takes a minute")
            try:
                compiled = cast(nn.Module, torch.compile(loss_of, fullgraph=True))
                attempt(compiled)
                return compiled
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing compiler, an unsupported GPU: inductor raises many kinds
                log(f"torch.compile cannot work here ({first_line(error)}); training without it")
                torch._dynamo.reset()
                loss_of.zero_grad(set_to_none=True)
        if where.type == "cuda":
            attempt(loss_of)
        return loss_of
    except torch.OutOfMemoryError:
        raise UserError(
            f"batch_size={config.batch_size} of block_size={config.block_size} does not fit the memory of {where}; "
            "lower --batch_size, and raise --gradient_accumulation_steps to keep the tokens per step"
        ) from None


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block for itself, in place, as sharding needs it: no process ever has the whole model."""
    for block in blocks:
        block.compile()


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep only its input for the backward pass and compute the rest again there, in place."""
    for block in blocks:
        if isinstance(block.forward, functools.partial):  # a model of the caller's that was trained before
            continue
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def recompute_activations(is_on: bool) -> None:
    """Make compiled backward passes recompute the outputs of GELU and LayerNorm, as llm.c does, or keep them.

    With recomputation, a block keeps at most two thirds of what it keeps uncompiled, for a few more operations.
    """
    from torch._functorch import config

    if hasattr(config, "ban_recompute_materialized_backward"):  # an internal switch of PyTorch, and only saves memory
        config.ban_recompute_materialized_backward = not is_on


def choose_recomputation(config: TrainConfig, shape: GPTConfig, processes: int, where: torch.device) -> None:
    """Recompute activations in compiled backward passes as far as `training_memory` says for this device.

    Its total memory decides and not what is free, so that every start of a run computes alike.
    """
    available = torch.cuda.get_device_properties(where).total_memory if where.type == "cuda" else 0
    sharing = Sharing(processes, config.parallel, config.zero_stage)
    recompute_activations(training_memory(config, shape, sharing, where.type, available)[1])
