"""How a model is wrapped, and how the gradients of micro-batches here and elsewhere become one."""

import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.distributed.world import World
from gpt2.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class Engine(Protocol):
    """How the gradients of an update's micro-batches, here and elsewhere, become one gradient."""

    @property
    def forward(self) -> Callable[..., Any]:
        """What to train: computes the loss of a micro-batch."""
        ...

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        """Context of a micro-batch's forward and backward. Its loss is divided by those of the whole update."""
        ...

    def finish(self) -> None:
        """Have the gradient of the update in every parameter's `grad`."""
        ...


class Plain:
    """Adds up micro-batch by micro-batch; several processes then by PyTorch's DistributedDataParallel."""

    def __init__(self, forward: nn.Module, world: World, device: torch.device) -> None:
        self.wrapped = None
        if world.size > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(
                forward, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )
            self.wrapped.register_comm_hook(None, _add_up)
        self.forward = self.wrapped or forward

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last or self.wrapped is None else self.wrapped.no_sync()

    def finish(self) -> None:
        pass


def _add_up(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum over processes, where DistributedDataParallel would take the mean."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


class FixedOrder:
    """Adds up in one binary tree over all micro-batches, whichever process has them.

    The sum is then the same bit for bit with 1, 2, 4, … processes: neighbouring micro-batches first, then
    neighbouring pairs of them, and so on; the last steps between processes, by recursive doubling (Thakur et al.
    2005). Where the number of micro-batches is no power of two, its odd part is added up in a row first.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any], world: World, micro_batches: int) -> None:
        self.forward = forward
        self.world = world
        self.parameters = list(model.parameters())
        self.leaf = micro_batches // (micro_batches & -micro_batches)
        """Micro-batches added up in a row."""
        self.begun = 0
        self.sums: list[tuple[int, list[Tensor]]] = []
        """Sums that wait for their neighbour: how many leaves, and the gradient of each parameter."""

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        yield
        self.begun += 1
        if self.begun < self.leaf:
            return
        leaves, total = 1, self._taken()
        while self.sums and self.sums[-1][0] == leaves:
            left = self.sums.pop()[1]
            torch._foreach_add_(left, total)
            leaves, total = 2 * leaves, left
        self.sums.append((leaves, total))

    def _taken(self) -> list[Tensor]:
        """The gradients, which leave the parameters."""
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
            for mine in total:  # one by one, to need memory for only one more
                theirs = torch.empty_like(mine)
                exchange = [dist.P2POp(dist.isend, mine, partner), dist.P2POp(dist.irecv, theirs, partner)]
                for request in dist.batch_isend_irecv(exchange):
                    request.wait()
                mine += theirs  # the same in both: a + b is b + a
            distance *= 2
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient


class Sharded:
    """Every process keeps a part of each parameter, its gradient and its optimizer state: PyTorch's fully_shard."""

    def __init__(self, model: "FSDPModule", forward: Callable[..., Any]) -> None:
        self.model = model
        self.forward = forward

    def micro_batch(self, is_last: bool) -> AbstractContextManager:
        self.model.set_requires_gradient_sync(is_last)
        return nullcontext()

    def finish(self) -> None:
        pass


def check(
    world: World, *, micro_batches: int, deterministic: bool, parallel: str, zero_stage: int, dtype: str
) -> None:
    """Raise UserError where the processes cannot share the work so."""
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
            "deterministic=True needs whole gradients; use it with parallel=ddp, with or without zero_stage"
        )
    if parallel == "fsdp" and zero_stage:
        raise UserError("parallel=fsdp shards the optimizer state too; leave --zero_stage out")
    if parallel == "fsdp" and dtype == "float16":
        raise UserError("parallel=fsdp does not scale gradients; use --dtype=bfloat16 or float32")


def wrapped(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    forward: nn.Module,
    world: World,
    device: torch.device,
    *,
    micro_batches: int,
    deterministic: bool,
    parallel: str,
    compile_blocks: bool,
    cpu_offload: bool,
) -> Engine:
    """What makes one gradient of an update's `micro_batches`. Before it there is no optimizer.

    forward: computes the loss, compiled or not. Sharding replaces the model's parameters, block by block.
    """
    if world.size > 1 and parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            CPUOffloadPolicy,
            FSDPModule,
            OffloadPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        # It warns of logits that are a view, which nobody here changes in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        # It warns of what it does instead of an all-to-all, which gloo does not have.
        logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
        mesh = init_device_mesh(device.type, (world.size,))
        policy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
        for block in blocks:
            if compile_blocks:
                block.compile()
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(model, mesh=mesh, offload_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # add gradients up, as the other engines do, where it takes the mean
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        assert isinstance(model, FSDPModule), "fully_shard has made it one"
        for method in ("loss", "token_losses", "log_probs"):  # they need whole parameters
            register_fsdp_forward_method(model, method)
        return Sharded(model, forward)
    if deterministic:
        return FixedOrder(model, forward, world, micro_batches)
    return Plain(forward, world, device)


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Have each block keep only its input for the backward pass and compute the rest again there, in place."""
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def compile_sparingly() -> None:
    """Have compiled backward passes compute what GELU and LayerNorm gave again instead of keeping it, as llm.c can.

    A block then keeps two thirds of what it does uncompiled, or less, for a few operations on what is read anyway.
    """
    from torch._functorch import config

    if hasattr(config, "ban_recompute_materialized_backward"):  # it is PyTorch's own affair, and only saves memory
        config.ban_recompute_materialized_backward = False
