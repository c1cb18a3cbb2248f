"""Gradient synchronization: how the gradients of all micro-batches, on all processes, become one sum.

Each class has the same three things: `loss_of`, the module that computes the loss of a micro-batch; `micro_batch`,
the context of its forward and backward pass; and `finish`, after which every parameter's `grad` is the sum.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt2.distributed.sharding import shard_model
from gpt2.distributed.world import World

BUCKET_BYTES = 25 * 2**20
"""Number of bytes of gradients that are summed together at least; DistributedDataParallel has the same default."""
EVERY = "every parameter takes part in every loss"


class GradientSync(Protocol):
    """Gradient synchronization of one run."""

    @property
    def loss_of(self) -> Callable[..., Any]:
        """The module that computes the loss of a micro-batch: `loss_of(x, y)`."""
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
    """Several processes sum their gradients while the last backward pass runs, a bucket as soon as it is complete.

    PyTorch's DistributedDataParallel waits for the sums inside the backward pass, which hides their time, and cannot
    split a compiled model with an autograd function in it (torch/_dynamo/backends/distributed.py).
    """

    def __init__(self, loss_of: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.loss_of = loss_of
        parameters = [p for p in loss_of.parameters() if p.requires_grad]
        for parameter in parameters:  # a model of the caller's may begin differently in each process
            dist.broadcast(parameter.detach(), 0)
        self.buckets = in_buckets(reversed(parameters), bucket_bytes)
        self.missing = [len(bucket) for bucket in self.buckets]
        """Number of gradients that each bucket lacks in the last backward pass."""
        self.is_last = False
        self.sums: list[Any] = []
        """Sums that have begun, one for each of the first buckets."""
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._add, number))

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self.is_last = is_last
        try:
            yield
        finally:
            self.is_last = False

    def _add(self, number: int, parameter: Tensor) -> None:
        """Count a complete gradient of a bucket. All processes send the buckets in the same order."""
        if not self.is_last:
            return
        self.missing[number] -= 1
        while len(self.sums) < len(self.buckets) and self.missing[len(self.sums)] == 0:
            bucket = self.buckets[len(self.sums)]
            flat, views = flattened([_gradient(p) for p in bucket])
            for p, view in zip(bucket, views, strict=True):
                p.grad = view
            self.sums.append(dist.all_reduce(flat, async_op=True))

    def finish(self) -> None:
        assert len(self.sums) == len(self.buckets), EVERY
        for begun in self.sums:
            begun.wait()
        self.sums = []
        self.missing = [len(bucket) for bucket in self.buckets]


def in_buckets(parameters: Iterable[Tensor], size: int) -> list[list[Tensor]]:
    """Return consecutive parameters in lists of at least `size` bytes each, except for the last."""
    found: list[list[Tensor]] = []
    filled = size
    for parameter in parameters:
        if filled >= size:
            found.append([])
            filled = 0
        found[-1].append(parameter)
        filled += parameter.numel() * parameter.element_size()
    return found


def flattened(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a copy of tensors of one dtype in one dimension, and views of it with their shapes."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    views = flat.split([t.numel() for t in tensors])
    return flat, [view.view(t.shape) for view, t in zip(views, tensors, strict=True)]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, EVERY
    return parameter.grad


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
            taken.append(_gradient(parameter))
            parameter.grad = None
        return taken

    def finish(self) -> None:
        [(_, total)] = self.sums
        self.sums = []
        if self.world.size > 1:
            flat, total = flattened(total)  # one message for each level of the tree
            distance = 1
            while distance < self.world.size:
                flat += self._exchanged(flat, self.world.rank ^ distance)  # equal on both sides: a + b is b + a
                distance *= 2
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient

    def _exchanged(self, sent: Tensor, partner: int) -> Tensor:
        received = torch.empty_like(sent)
        exchange = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
        for request in dist.batch_isend_irecv(exchange):
            request.wait()
        return received


class FullySharded:
    """Every process keeps a shard of each parameter, gradient and optimizer state: PyTorch's fully_shard (FSDP2).

    With hsdp, several groups of processes each have a complete set of shards.
    """

    def __init__(self, model: Any, loss_of: Callable[..., Any]) -> None:
        self.model = model
        self.loss_of = loss_of

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        self.model.set_requires_gradient_sync(is_last)
        return nullcontext()

    def finish(self) -> None:
        pass


def number_of_shards(world: World, parallel: str, hsdp_shards: int | None) -> int:
    """Return the number of processes over which fsdp or hsdp shards a model; for hsdp, by default, of a machine."""
    return world.size if parallel == "fsdp" else hsdp_shards or world.local_size


def synchronize_gradients(
    loss_of: nn.Module,
    world: World,
    device: torch.device,
    *,
    micro_batches: int,
    deterministic: bool,
    parallel: str,
    hsdp_shards: int | None = None,
    cpu_offload: bool = False,
    dtype: str = "float32",
) -> GradientSync:
    """Return the gradient synchronization of a run. The optimizer must be made after this call.

    loss_of: the module that computes the loss, compiled or not. micro_batches: number in an optimizer step, over all
    processes. dtype: name of the dtype of matrix products. Sharding replaces the model's parameters.
    """
    if world.size > 1 and parallel != "ddp":
        model = loss_of.get_submodule("model")
        shards = number_of_shards(world, parallel, hsdp_shards)
        shard_model(model, device, world.size // shards, shards, cpu_offload, half=dtype == "bfloat16")
        return FullySharded(model, loss_of)
    if deterministic:
        return FixedOrder(loss_of, world, micro_batches)
    return DataParallel(loss_of) if world.size > 1 else SingleProcess(loss_of)
