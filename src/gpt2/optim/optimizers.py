"""A model's optimizers: AdamW for everything, or Muon for the matrices of its blocks and AdamW for the rest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2.distributed.parts import part_like
from gpt2.optim.adamw import adamw, zero
from gpt2.optim.muon import Muon


def make_optimizers(
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    *,
    muon: dict[str, Any] | None = None,
    shared: bool = False,
) -> list[Optimizer]:
    """AdamW over all parameters; with settings for Muon, that for the blocks' matrices and AdamW for the rest.

    shared: each process keeps the state of some parameters and updates those for all (ZeRO stage 1).
    """
    named = dict(model.named_parameters())
    if muon is None:
        return [adamw(named.items(), learning_rate, betas, weight_decay, shared)]
    hidden = {name: p for name, p in named.items() if ".h." in name and p.dim() == 2}
    groups: list[dict[str, Any]] = []
    for parts in (1, 3):  # c_attn is the matrices of q, k and v
        names = [name for name in hidden if (3 if ".c_attn." in name else 1) == parts]
        groups.append({"params": [(name, hidden[name]) for name in names], "parts": parts})
    rest = [(name, p) for name, p in named.items() if name not in hidden]
    return [
        adamw(rest, learning_rate, betas, weight_decay, shared),
        zero(groups, Muon, muon) if shared else Muon(groups, **muon),
    ]


def set_learning_rate(optimizers: Sequence[Optimizer], share: float) -> None:
    """Have every group learn at this share of its peak rate, which it has when this is first called."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group.setdefault("peak_lr", group["lr"])


def skip_if(optimizers: Sequence[Optimizer], flag: Tensor) -> None:
    """Have the next step change nothing where the scalar `flag` is set; nobody waits for the device to know it."""
    for optimizer in optimizers:
        inner: Any = _inner(optimizer)
        inner.found_inf = flag.to(torch.float32)


def named_state(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' tensors as `name/key`, for example `transformer.wte.weight/exp_avg`: those this process has."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in _named_parameters(optimizer)
        for key, value in _inner(optimizer).state.get(parameter, {}).items()
    }


def load_named_state(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `named_state` of all processes gave, this process's part of it. Settings stay the optimizers'.

    A parameter without the state that its optimizer keeps begins anew.
    """
    for optimizer in optimizers:
        inner = _inner(optimizer)
        keys = ("momentum",) if isinstance(inner, Muon) else ("step", "exp_avg", "exp_avg_sq")
        mine = {p for group in inner.param_groups for p in group["params"]}
        for name, parameter in _named_parameters(optimizer):
            found = {key: f"{name}/{key}" for key in keys}
            if parameter not in mine:
                continue
            inner.state.pop(parameter, None)
            if found[keys[0]] in tensors:
                inner.state[parameter] = {key: part_like(parameter, tensors[full]) for key, full in found.items()}


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer that has the state: ZeRO's holds one over its share of the parameters."""
    return getattr(optimizer, "optim", optimizer)


def _named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, of all processes."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
