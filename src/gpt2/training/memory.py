"""Refuses a model and a batch that cannot fit into memory, before anything is allocated for them."""

import torch

from gpt2 import accounting
from gpt2.accounting import Sharing
from gpt2.device import free_memory, pick_device
from gpt2.errors import UserError
from gpt2.model import GPTConfig
from gpt2.training.config import TrainConfig


def require_memory(config: TrainConfig, shape: GPTConfig) -> None:
    """Raise UserError where a model of this shape cannot be made, or cannot be trained with the settings.

    The model is made in CPU memory. What is counted for the training on its device is certainly needed there: shards
    of other processes and what a system may keep elsewhere are not.
    """
    size = accounting.num_params(shape)
    _require("the parameters of the model", 4 * size, torch.device("cpu"))
    if config.eval_only:
        return
    needs = accounting.memory(
        shape,
        Sharing(),
        config.batch_size,
        half=config.dtype in ("bfloat16", "float16"),
        optimizer=config.optimizer,
        compiled=config.compile,
        activation_checkpointing=config.activation_checkpointing,
    )
    state = needs.parameters + needs.gradients + (0 if config.zero_stage else needs.optimizer)
    where = pick_device(config.device)
    _require(
        "a micro-batch and the state of the training",
        (0 if config.parallel == "fsdp" else state) + needs.activations // 2 + _square_bytes(config, shape),
        where,
    )


def _square_bytes(config: TrainConfig, shape: GPTConfig) -> int:
    """Return the bytes of what has a number for every pair of positions: the document mask, and unfused attention."""
    pairs = config.batch_size * shape.block_size**2
    kept = 1 if config.activation_checkpointing else shape.n_layer
    return pairs * (config.document_mask + (0 if config.flash else 4 * shape.n_head * kept))


def _require(what: str, needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free on {device.type}; take "
            "a smaller model, lower --batch_size or --block_size, or add --activation_checkpointing"
        )
