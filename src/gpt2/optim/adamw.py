"""AdamW as GPT-2 training uses it: weight decay on matrices, none on biases and LayerNorm gains."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gpt2.distributed.parts import part_like


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of named parameters: those with two or more dimensions decay, the rest do not."""
    named = list(model.named_parameters())
    return [
        {"params": [(n, p) for n, p in named if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float, shared: bool = False
) -> torch.optim.Optimizer:
    """PyTorch's AdamW, in the fused form, over the parameters of `model` by name.

    shared: each process keeps the state of some parameters and updates those for all (ZeRO stage 1; Rajbhandari et
    al. 2020).
    """
    groups = [g for g in parameter_groups(model, weight_decay) if g["params"]]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": 1e-8, "fused": True}
    if not shared:
        return torch.optim.AdamW(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, because of the time it takes

    for group in groups:  # it takes no names
        group["param_names"], group["params"] = (list(column) for column in zip(*group["params"], strict=True))
    return ZeroRedundancyOptimizer(groups, optimizer_class=torch.optim.AdamW, **settings)


def skip_if(optimizer: torch.optim.Optimizer, flag: torch.Tensor) -> None:
    """Have the next step change nothing where the scalar `flag` is set; nobody waits for the device to know it."""
    fused: Any = _inner(optimizer)
    fused.found_inf = flag.to(torch.float32)


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `name/key`, for example `transformer.wte.weight/exp_avg`: those this process has.

    Needs an optimizer whose groups were made from named parameters.
    """
    state = _inner(optimizer).state
    return {
        f"{name}/{key}": value
        for name, parameter in _named_parameters(optimizer)
        for key, value in state.get(parameter, {}).items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `named_state` of all processes gave, this process's part of it. Settings stay the optimizer's."""
    inner = _inner(optimizer)
    mine = {p for group in inner.param_groups for p in group["params"]}
    for name, parameter in _named_parameters(optimizer):
        found = {key: f"{name}/{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
        if parameter in mine and found["step"] in tensors:
            inner.state[parameter] = {key: part_like(parameter, tensors[full]) for key, full in found.items()}


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that has the state: ZeRO's holds one over its share of the parameters."""
    return getattr(optimizer, "optim", optimizer)


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter, of all processes."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
