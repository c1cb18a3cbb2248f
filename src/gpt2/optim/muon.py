"""Muon: momentum whose matrices are made orthogonal before they are applied (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpt2.distributed.parts import apart, holders, together
from gpt2.optim.undecorated import Undecorated

MOST_AT_ONCE = 2**26
"""Numbers of matrices that a process makes orthogonal together; five times as many are held meanwhile."""
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Of one quintic after the other: the first n are the best n for singular values between 0.001 and 1 (Amsel et al.
2025, "The Polar Express"). They bring them to 1 ± 0.87 in 3 steps, ± 0.56 in 4, ± 0.12 in 5."""
MARGIN = 1.01
"""By which matrices are divided more than by their norm, because bfloat16 rounds up too."""


class Muon(Undecorated):
    """Updates matrices; a group's `parts` says how many a parameter holds, one below the other.

    Momentum is Nesterov's. An update of a (rows, columns) matrix is scaled by sqrt(max(1, rows / columns)); weight
    decay is decoupled, as AdamW's. iterations: at most 5, in which matrices are made orthogonal, in format `dtype`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})
        self.iterations, self.dtype = iterations, dtype
        self.found_inf: Tensor | None = None
        """Where this is set and not 0, the next step changes nothing."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Make an update of every parameter that has a gradient."""
        proceed = 1.0 if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            for parameters in alike([p for p in group["params"] if p.grad is not None]):
                momenta = torch.stack([self._advanced(p, group["momentum"]) for p in parameters])
                mine = apart(momenta)  # of what lies in parts, each process computes some matrices for all
                rows, columns = mine.size(1) // group["parts"], mine.size(2)
                matrices = mine.reshape(len(mine) * group["parts"], rows, columns)
                steps = orthogonal(matrices, self.iterations, self.dtype).reshape(mine.shape)
                steps = steps.to(momenta.dtype) * (proceed * group["lr"] * max(1, rows / columns) ** 0.5)
                for parameter, step in zip(parameters, together(steps, momenta).unbind(), strict=True):
                    parameter.mul_(1 - proceed * (group["lr"] * group["weight_decay"]))
                    parameter.sub_(step)

    def _advanced(self, parameter: Tensor, momentum: float) -> Tensor:
        """Put the next momentum into the state; returns what Nesterov sees ahead of it."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        if self.found_inf is not None:  # numbers that are not finite must not come near it
            gradient = torch.where(self.found_inf.bool(), mean, gradient)
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def alike(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters of one shape, so many at a time that no process computes with more than MOST_AT_ONCE numbers."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, same in shapes.items():
        count = max(1, MOST_AT_ONCE // shape.numel()) * holders(same[0])
        yield from (same[first : first + count] for first in range(0, len(same), count))


def orthogonal(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Matrices (n, rows, columns) with singular values brought close to 1, and the same singular vectors; in `dtype`.

    Newton and Schulz's steps X ← aX + (bA + cA²)X with A = XXᵀ act on the singular values alone.
    """
    standing = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if standing else matrices).to(dtype)
    x = x / (MARGIN * x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS[:iterations]:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if standing else x
