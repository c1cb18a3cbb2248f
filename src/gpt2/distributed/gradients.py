"""Gradient synchronization: how the gradients of all micro-batches, on all processes, become one sum.

Each class has the same three things: `loss_of`, the module that computes the loss of a micro-batch; `micro_batch`,
the context of its forward and backward pass; and `finish`, after which every parameter's `grad` is the sum.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt2.distributed.sharding import shard_model
from gpt2.distributed.world import World
from gpt2.errors import UserError


class GradientSync(Protocol):
    """Gradient synchronization of one run."""

    @property
    def loss_of(self) -> Callable[..., Any]:
        """The module that computes the loss of a micro-batch: `loss_of(x, y, mask)`."""
        ...

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch's forward and backward pass; is_last: of this process, in this step."""
        ...

    def finish(self) -> None:
        """Leave the sum over all micro-batches of all processes in every parameter's `grad`."""
        ...


class SingleProcess:
    """One process adds up its micro-batches in `grad`, as PyTorch does by itself."""

    def __init__(self, loss_of: nn.Module) -> None:
        self.loss_of = loss_of

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        pass


class DataParallel:
    """Several processes add up their gradients while the last backward pass runs: PyTorch's DDP."""

    def __init__(self, loss_of: nn.Module, device: torch.device) -> None:
        devices = [device] if device.type == "cuda" else None
        ddp = nn.parallel.DistributedDataParallel(loss_of, device_ids=devices, gradient_as_bucket_view=True)
        ddp.register_comm_hook(None, _sum)
        self.loss_of = ddp

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        return nullcontext() if is_last else self.loss_of.no_sync()

    def finish(self) -> None:
        pass


def _sum(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket over the processes, where DDP by default takes the mean."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


class FixedOrder:
    """Adds up in one binary tree over all micro-batches, whichever process computes them.

    The sum is then the same bit for bit with 1, 2, 4, … processes: neighbouring micro-batches first, then
    neighbouring pairs, and so on; the last additions between processes, by recursive doubling (Thakur et al. 2005).
    Where the number of micro-batches is no power of two, its odd factor is added up one after the other first.
    """

    def __init__(self, loss_of: nn.Module, world: World, micro_batches: int) -> None:
        self.loss_of = loss_of
        self.world = world
        self.parameters = [p for p in loss_of.parameters() if p.requires_grad]
        self.leaf = micro_batches // (micro_batches & -micro_batches)
        """Number of micro-batches that are added up one after the other."""
        self.begun = 0
        self.sums: list[tuple[int, list[Tensor]]] = []
        """Sums that wait for their neighbour: the number of leaves, and the gradient of each parameter."""

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        yield
        self.begun += 1
        if self.begun < self.leaf:
            return
        leaves, total = 1, self._take_gradients()
        while self.sums and self.sums[-1][0] == leaves:
            left = self.sums.pop()[1]
            torch._foreach_add_(left, total)
            leaves, total = 2 * leaves, left
        self.sums.append((leaves, total))

    def _take_gradients(self) -> list[Tensor]:
        self.begun = 0
        taken = []
        for parameter in self.parameters:
            assert parameter.grad is not None, "every parameter takes part in every loss"
            taken.append(parameter.grad)
            parameter.grad = None
        return taken

    def finish(self) -> None:
        [(_, total)] = self.sums
        self.sums = []
        distance = 1
        while distance < self.world.size:
            partner = self.world.rank ^ distance
            for gradient in total:  # one by one, so that memory holds only one more
                received = torch.empty_like(gradient)
                exchange = [dist.P2POp(dist.isend, gradient, partner), dist.P2POp(dist.irecv, received, partner)]
                for request in dist.batch_isend_irecv(exchange):
                    request.wait()
                gradient += received  # the same on both sides: a + b is b + a
            distance *= 2
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient


class FullySharded:
    """Every process keeps a shard of each parameter, gradient and optimizer state: PyTorch's fully_shard (FSDP2)."""

    def __init__(self, model: Any, loss_of: Callable[..., Any]) -> None:
        self.model = model
        self.loss_of = loss_of

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(is_last)
        return nullcontext()

    def finish(self) -> None:
        pass


def check_processes(
    world: World, *, micro_batches: int, deterministic: bool, parallel: str, zero_stage: int, dtype: str
) -> None:
    """Raise UserError where the processes of the world cannot share the work with these settings."""
    if micro_batches % world.size:
        below = micro_batches // world.size * world.size
        nearest = f"{below} or {below + world.size}" if below else f"{world.size}"
        raise UserError(
            f"gradient_accumulation_steps={micro_batches}, which counts those of all processes, cannot be shared by "
            f"{world.size} of them; the nearest numbers that can: {nearest}"
        )
    if deterministic and world.size & (world.size - 1):
        raise UserError(f"deterministic=True needs 1, 2, 4, 8, … processes, and there are {world.size}")
    if parallel == "fsdp" and deterministic:
        raise UserError(
            "deterministic=True needs gradients that are not sharded; use it with parallel=ddp, with or without "
            "zero_stage"
        )
    if parallel == "fsdp" and zero_stage:
        raise UserError("parallel=fsdp shards the optimizer state too; leave --zero_stage out")
    if parallel == "fsdp" and dtype == "float16":
        raise UserError("parallel=fsdp does not scale gradients; use --dtype=bfloat16 or float32")


def synchronize_gradients(
    loss_of: nn.Module,
    world: World,
    device: torch.device,
    *,
    micro_batches: int,
    deterministic: bool,
    parallel: str,
    cpu_offload: bool,
) -> GradientSync:
    """Return the gradient synchronization of a run. The optimizer must be made after this call.

    loss_of: the module that computes the loss, compiled or not. micro_batches: number in an optimizer step, over all
    processes. Sharding replaces the model's parameters.
    """
    if world.size > 1 and parallel == "fsdp":
        model = loss_of.get_submodule("model")
        shard_model(model, device, world.size, cpu_offload)
        return FullySharded(model, loss_of)
    if deterministic:
        return FixedOrder(loss_of, world, micro_batches)
    return DataParallel(loss_of, device) if world.size > 1 else SingleProcess(loss_of)
