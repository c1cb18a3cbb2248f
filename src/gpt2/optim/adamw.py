"""AdamW as GPT-2 training uses it: weight decay on matrices, none on biases and LayerNorm gains."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gpt2.distributed import part_like


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
    fused: Any = getattr(optimizer, "optim", optimizer)  # ZeRO's holds the one that does the work
    fused.found_inf = flag.to(torch.float32)


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's tensors as `name/key`, for example `transformer.wte.weight/exp_avg`.

    Needs an optimizer whose groups were made from named parameters. Where processes share the state all must call,
    and the main one gets it, the others nothing.
    """
    if (consolidate := getattr(optimizer, "consolidate_state_dict", None)) is not None:  # of ZeRO's
        consolidate(to=0)
        if torch.distributed.get_rank():
            return {}
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    return {
        f"{names[number]}/{key}": value
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `named_state` gave, or this process's part of it. Settings stay the optimizer's own."""
    groups, state, number = [], {}, 0
    for group in optimizer.param_groups:
        named = list(zip(group["param_names"], group["params"], strict=True))
        for i, (name, parameter) in enumerate(named, start=number):
            found = {key: f"{name}/{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
            if found["step"] in tensors:
                state[i] = {key: part_like(parameter, tensors[full]) for key, full in found.items()}
        groups.append({**group, "params": list(range(number, number + len(named)))})
        number += len(named)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
