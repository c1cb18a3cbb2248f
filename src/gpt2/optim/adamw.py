"""AdamW as GPT-2 training uses it: weight decay on matrices, none on biases and LayerNorm gains."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gpt2.optim.undecorated import Undecorated

NamedTensors = Iterable[tuple[str, Tensor]]

IGNORE_FOUND_INF = ("mps",)
"""Devices whose kernel updates even where `found_inf` is set, up to PyTorch 2.13 (pytorch/pytorch#186360)."""


def parameter_groups(named: NamedTensors, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of named parameters: those with two or more dimensions decay, the rest do not."""
    named = list(named)
    return [
        {"params": [(n, p) for n, p in named if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
    ]


class AdamW(Undecorated, torch.optim.AdamW):
    """PyTorch's fused AdamW, with the same result bit for bit, that skips a step on every device.

    Where `found_inf` is set and not 0, a step changes nothing.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Update every parameter that has a gradient."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.device.type in IGNORE_FOUND_INF and found_inf.item():
            return
        inspect.unwrap(torch.optim.AdamW.step)(self)


def adamw(
    named: NamedTensors, learning_rate: float, betas: tuple[float, float], weight_decay: float, zero_stage: int = 0
) -> torch.optim.Optimizer:
    """Return the fused AdamW over named parameters.

    zero_stage: with 1, each process keeps the state of some parameters and updates those for all (ZeRO; Rajbhandari
    et al. 2020).
    """
    groups = [g for g in parameter_groups(named, weight_decay) if g["params"]]
    settings: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": 1e-8, "fused": True}
    return zero(groups, AdamW, settings) if zero_stage else AdamW(groups, **settings)


def zero(groups: list[dict[str, Any]], kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> Any:
    """Return an optimizer of which each process keeps the state of some parameters (ZeRO stage 1)."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # here, because its import takes a while

    for group in groups:  # it does not take names
        group["param_names"], group["params"] = (list(column) for column in zip(*group["params"], strict=True))
    return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **settings)
