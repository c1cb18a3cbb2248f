"""Compilation: how the training loss is compiled, and tried before a run begins."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpt2 import device
from gpt2.chunked_loss import TrainingLoss, chunked_cross_entropy
from gpt2.data.batches import gather
from gpt2.data.shards import Tokens
from gpt2.distributed.world import World
from gpt2.documents import document_blocks, document_mask
from gpt2.errors import Log, UserError, first_line
from gpt2.training.budget import masks_by_blocks, sharing_of, training_memory
from gpt2.training.config import TrainConfig


def compiled_loss(
    loss_of: TrainingLoss, tokens: Tokens, config: TrainConfig, log: Log, *, in_pieces: bool
) -> nn.Module:
    """Return the training loss, compiled where the settings ask for it and it works, and tried on one micro-batch.

    in_pieces: see `compile_pieces`. Raises UserError where a micro-batch does not fit the device's memory.
    """
    where = next(loss_of.parameters()).device
    x, y = gather(tokens, [0] * config.batch_size, config.block_size, where)

    def attempt(forward: Callable[..., Any]) -> None:
        with device.autocast(where, config.dtype):
            loss = forward(x, y)
        loss.backward()
        loss_of.zero_grad(set_to_none=True)

    try:
        if config.compile:
            log("compiling the model; the first time takes a minute")
            undo = compile_pieces(loss_of) if in_pieces else lambda: None
            try:
                compiled = loss_of if in_pieces else cast(nn.Module, torch.compile(loss_of, fullgraph=True))
                attempt(compiled)
                return compiled
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing compiler, an unsupported GPU: inductor raises many kinds
                log(f"torch.compile cannot work here ({first_line(error)}); training without it")
                torch._dynamo.reset()
                undo()
                loss_of.mask_of = document_mask
                loss_of.zero_grad(set_to_none=True)
        if where.type == "cuda":
            attempt(loss_of)
        return loss_of
    except torch.OutOfMemoryError:
        raise UserError(
            f"batch_size={config.batch_size} of block_size={config.block_size} does not fit the memory of {where}; "
            "lower --batch_size, and raise --gradient_accumulation_steps to keep the tokens per step"
        ) from None


def compile_pieces(loss_of: TrainingLoss) -> Callable[[], None]:
    """Compile each block and the head by itself, in place; return a function that undoes it.

    The backward pass is then one of pieces too, between which gradients of several processes begin to travel: that of
    a single graph returns all of them at its end. Sharding needs it as well, as no process ever has all of the model.
    """
    blocks = list(loss_of.model.transformer.h)
    plain = [block.forward for block in blocks]
    for block in blocks:
        block.forward = compiled_for_training(block.forward)
    loss_of.cross_entropy = compiled_for_training(loss_of.cross_entropy)
    loss_of.mask_of = compiled_for_training(loss_of.mask_of)

    def undo() -> None:
        for block, forward in zip(blocks, plain, strict=True):
            block.forward = forward
        loss_of.cross_entropy = chunked_cross_entropy
        loss_of.mask_of = document_mask

    return undo


def compiled_for_training(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled where gradients are needed; other shapes of evaluations compile nothing."""
    compiled = torch.compile(function, fullgraph=True)

    def either(*inputs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else function)(*inputs)

    return either


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


def choose_kernels(loss_of: TrainingLoss, config: TrainConfig, world: World, where: torch.device) -> None:
    """Choose what compiled code does on a device: how documents are masked, and what the backward pass recomputes.

    Activations are recomputed as far as `training_memory` says. All memory of the device counts and not what is free,
    so that every start of a run computes alike.
    """
    if masks_by_blocks(config, where.type):
        loss_of.mask_of = document_blocks
    available = torch.cuda.get_device_properties(where).total_memory if where.type == "cuda" else 0
    sharing = sharing_of(config, world.size, world.local_size)
    recompute_activations(training_memory(config, loss_of.model.config, sharing, where.type, available)[1])
