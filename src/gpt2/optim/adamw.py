"""AdamW as GPT-2 training uses it: weight decay on matrices, none on biases and LayerNorm gains."""

from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of named parameters: those with two or more dimensions decay, the rest do not."""
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """PyTorch's AdamW, in the fused form, over the parameters of `model` by name."""
    groups = [g for g in parameter_groups(model, weight_decay) if g["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=1e-8, fused=True)


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `name/key`, for example `transformer.wte.weight/exp_avg`.

    Needs an optimizer whose groups were made from named parameters.
    """
    return {
        f"{name}/{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for key, value in optimizer.state[parameter].items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `named_state` gave. Learning rates and other settings stay the optimizer's own."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    for full_name, value in tensors.items():
        name, key = full_name.rsplit("/", 1)
        state.setdefault(names.index(name), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
