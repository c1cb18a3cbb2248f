"""The optimizers of a model: AdamW for everything, or Muon for the matrices of its blocks and AdamW for the rest."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpt2.distributed.sharding import shard_like
from gpt2.optim.adamw import adamw, zero
from gpt2.optim.muon import Muon


def make_optimizers(
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    *,
    muon: dict[str, Any] | None = None,
    zero_stage: int = 0,
) -> list[Optimizer]:
    """Return AdamW over all parameters; with settings for Muon, AdamW for the rest and Muon for the blocks' matrices.

    zero_stage: with 1, each process keeps the optimizer state of some parameters and updates those for all (ZeRO;
    Rajbhandari et al. 2020).
    """
    named = dict(model.named_parameters())
    if muon is None:
        return [adamw(named.items(), learning_rate, betas, weight_decay, zero_stage)]
    matrices = {name: p for name, p in named.items() if ".h." in name and p.dim() == 2}
    groups: list[dict[str, Any]] = []
    for stacked in (1, 3):  # c_attn holds the matrices of q, k and v
        names = [name for name in matrices if (3 if name.endswith(".c_attn.weight") else 1) == stacked]
        if names:  # layers of the caller's may have none
            groups.append({"params": [(name, matrices[name]) for name in names], "stacked": stacked})
    rest = [(name, p) for name, p in named.items() if name not in matrices]
    return [
        adamw(rest, learning_rate, betas, weight_decay, zero_stage),
        zero(groups, Muon, muon) if zero_stage else Muon(groups, **muon),
    ]


def update(optimizers: Sequence[Optimizer], scaler: torch.amp.GradScaler, lr_scale: float, skip: Tensor) -> None:
    """Make one optimizer step and free the gradients; the device decides whether to skip it, so nothing waits.

    lr_scale: every learning rate as a share of its peak. skip: a scalar bool; where it is True, no weight and no
    optimizer state changes. With a gradient scaler, which has unscaled the gradients, nothing changes either where
    any of them overflowed.
    """
    found_inf = skip.to(torch.float32)
    if scaler.is_enabled():  # it would let an optimizer whose own gradients are finite make its step alone
        flags = [flag for o in optimizers for flag in scaler._found_inf_per_device(o).values()]
        found_inf = torch.stack([found_inf, *flags]).amax()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr_scale * group.setdefault("peak_lr", group["lr"])
        inner: Any = _local(optimizer)
        inner.found_inf = found_inf.to(optimizer.param_groups[0]["params"][0].device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    scaler.update()


def named_state(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return this process's optimizer state as `name/key`, for example `transformer.wte.weight/exp_avg`."""
    return {
        f"{name}/{key}": value
        for optimizer in optimizers
        for name, parameter in _named_parameters(optimizer)
        for key, value in _local(optimizer).state.get(parameter, {}).items()
    }


def load_named_state(optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Load this process's share of what `named_state` of all processes returned. Settings stay the optimizers'.

    A parameter whose state is not there starts without one.
    """
    for optimizer in optimizers:
        local = _local(optimizer)
        keys = ("momentum",) if isinstance(local, Muon) else ("step", "exp_avg", "exp_avg_sq")
        parameters = {p for group in local.param_groups for p in group["params"]}
        for name, parameter in _named_parameters(optimizer):
            found = {key: f"{name}/{key}" for key in keys}
            if parameter not in parameters:
                continue
            local.state.pop(parameter, None)
            if found[keys[0]] in tensors:
                local.state[parameter] = {key: shard_like(parameter, tensors[full]) for key, full in found.items()}


def _local(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that has the state: ZeRO's holds one over this process's share of the parameters."""
    return getattr(optimizer, "optim", optimizer)


def _named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and tensor of every parameter, of all processes."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
