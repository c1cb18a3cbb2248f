"""Muon: an optimizer that orthogonalizes the momentum of each matrix (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon. PyTorch's `torch.optim.Muon` is not used: it takes each of c_attn's three
matrices for one, cannot be sharded or skip a step on the device, and updates one matrix at a time.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpt2.distributed.sharding import collect_stack, distribute_stack, shard_count
from gpt2.optim.undecorated import Undecorated

MAX_STACK = 2**26
"""Largest number of matrix elements that a process orthogonalizes together; memory holds five times that number."""
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""Coefficients of the quintic polynomial of each iteration (Amsel et al. 2025, "The Polar Express"): the first n are
the best n for singular values of 0.001 to 1, which become 1 ± 0.87 in 3 iterations, ± 0.56 in 4, ± 0.12 in 5."""
MARGIN = 1.01
"""Factor on the norm by which matrices are divided, because bfloat16 can round up."""


class Muon(Undecorated):
    """An optimizer for matrices. A group's `stacked` is the number of matrices in a parameter, one below the other.

    Momentum is Nesterov's. The update of a (rows, columns) matrix is scaled by sqrt(max(1, rows / columns)); weight
    decay is decoupled, as in AdamW. iterations: at most 5 iterations orthogonalize the matrices, in `dtype`.
    processes: number of processes that have the same parameters and gradients, and share the work.
    """

    found_inf: Tensor | None = None
    """A scalar; where it is set and not 0, the next step changes nothing."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        iterations: int = 5,
        dtype: torch.dtype = torch.float32,
        processes: int = 1,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "stacked": 1})
        self.iterations, self.dtype, self.processes = iterations, dtype, processes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyrefly: ignore[bad-override]
        """Update every parameter that has a gradient."""
        proceed = 1.0 if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            for parameters in same_shape([p for p in group["params"] if p.grad is not None], self.processes):
                momenta = torch.stack([self._advanced(p, group["momentum"]) for p in parameters])
                share = distribute_stack(momenta, self.processes)  # each process computes some matrices for all
                rows, columns = share.size(1) // group["stacked"], share.size(2)
                matrices = share.reshape(len(share) * group["stacked"], rows, columns)
                steps = orthogonalized(matrices, self.iterations, self.dtype).reshape(share.shape)
                steps = collect_stack(steps, momenta, self.processes).to(momenta.dtype)
                steps *= proceed * group["lr"] * max(1, rows / columns) ** 0.5
                for parameter, step in zip(parameters, steps.unbind(), strict=True):
                    parameter.mul_(1 - proceed * (group["lr"] * group["weight_decay"]))
                    parameter.sub_(step)

    def _advanced(self, parameter: Tensor, momentum: float) -> Tensor:
        """Advance the momentum in the optimizer state; return Nesterov's look ahead of it."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"]
        if self.found_inf is not None:  # a gradient that is not finite must not reach the state
            gradient = torch.where(self.found_inf.bool(), mean, gradient)
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def same_shape(parameters: list[Tensor], processes: int) -> Iterator[list[Tensor]]:
    """Yield lists of parameters of one shape, of which no process computes with more than MAX_STACK elements."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, same in shapes.items():
        count = max(1, MAX_STACK // shape.numel()) * max(processes, shard_count(same[0]))
        yield from (same[first : first + count] for first in range(0, len(same), count))


def orthogonalized(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Return matrices (n, rows, columns) with the same singular vectors and singular values close to 1, in `dtype`.

    Newton-Schulz iterations X ← aX + (bA + cA²)X with A = XXᵀ change only the singular values.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / (MARGIN * x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in COEFFICIENTS[:iterations]:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
