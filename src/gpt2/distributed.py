"""The processes that train together: who they are, what they agree on, and how their gradients become one.

A process alone goes the same way, on which everything here then does nothing, correctly.
"""

import faulthandler
import functools
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2.errors import ToldElsewhere, UserError
from gpt2.tensor_file import Part

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

ANSWER_SECONDS = 10
"""For how long a process that is about to end asks about the others."""


@dataclass(frozen=True)
class World:
    """This process's place among those that train together. All of them must call a method, or none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine."""
    control: Any = None
    """The group through which they tell each other small things, without waiting for a GPU; None is the default."""

    watchdog: "Watchdog | None" = None

    def apart(self) -> "World":
        """The same processes with a channel of their own, for what happens beside the training."""
        if self.size == 1:
            return self
        return replace(self, control=dist.new_group(backend="gloo"), watchdog=None)

    def beat(self, where: str) -> None:
        """Say that this process is alive and where it is; who says nothing for too long ends the group."""
        if self.watchdog is not None:
            self.watchdog.beat(where)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The small picklable `value` of every process, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set anywhere."""
        if self.size == 1:
            return flag
        tensor = torch.tensor(int(flag))
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return bool(tensor)

    def concatenated(self, tensor: Tensor) -> Tensor:
        """The one-dimensional tensors of every process, equally long, by rank."""
        if self.size == 1:
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor)
        return torch.cat(found)

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives here. A UserError of one process is raised in all, so that none waits for it."""
        if self.size == 1:
            return work()
        results, error = [], None
        try:
            results.append(work())
        except UserError as caught:
            error = str(caught)
        if (first := next((e for e in self.gather(error) if e is not None), None)) is not None:
            raise UserError(first) if self.is_main else ToldElsewhere(first)
        return results[0]

    def main_only(self, work: Callable[[], T]) -> T | None:
        """What `work` gives in the main process, for which the others wait; None in those."""
        return self.agreed(lambda: work() if self.is_main else None)

    def main_first(self, work: Callable[[], T]) -> T:
        """What `work` gives, which the main process does before the others; they find done what it leaves behind."""
        results: list[T] = []
        for is_mains_turn in (True, False):
            if is_mains_turn == self.is_main:
                self.agreed(lambda: results.append(work()))
            elif self.size > 1:
                self.agreed(lambda: None)
        return results[0]


class Watchdog(threading.Thread):
    """Ends this process where it has come no further for some time, and says which process all wait for.

    The processes leave their whereabouts in the store through which they met.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.store.set(f"gpt2/{rank}", "0 its start")
        self.beats = 0
        self.last = float("inf")  # until training begins: before it data may be prepared for hours
        self.done = threading.Event()
        self.start()

    def beat(self, where: str) -> None:
        self.beats += 1
        self.store.set(f"gpt2/{self.rank}", f"{self.beats} {where}")
        self.last = time.monotonic()

    def run(self) -> None:
        while not self.done.wait(self.seconds / 20):
            waited = time.monotonic() - self.last
            if waited > self.seconds:
                sys.stderr.write(self.verdict(waited))
                faulthandler.dump_traceback(all_threads=True)
                os._exit(1)

    def verdict(self, waited: float) -> str:
        """What the others have left in the store says about who hangs."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(self.furthest_behind()), daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)  # who keeps the store may be who hangs, or was on a machine that is off
        silence = "the main process or its torchrun, which knows about the others, does not answer"
        return (
            f"gpt2: process {self.rank} came no further for {waited:.0f} s (dist_timeout={self.seconds:g}); "
            f"{found[0] if found else silence}; this is where process {self.rank} waits:\n"
        )

    def furthest_behind(self) -> str:
        others = [rank for rank in range(self.size) if rank != self.rank]
        found = {rank: self.store.get(f"gpt2/{rank}").decode().split(" ", 1) for rank in others}
        least = min(int(beats) for beats, _ in found.values())
        behind = [f"process {rank} at {where}" for rank, (beats, where) in found.items() if int(beats) == least]
        return f"of the others furthest behind: {', '.join(behind)}"


ALONE = World()


@contextmanager
def joined(device: torch.device, backend: str, timeout_seconds: float) -> Iterator[World]:
    """The world that torchrun made this process a part of; without torchrun, a world of one."""
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield ALONE
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=2 * timeout_seconds)  # the watchdog is sooner and says more
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = unused_part(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    watchdog = Watchdog(store, rank, size, timeout_seconds)
    try:
        control = dist.new_group(backend="gloo") if backend == "nccl" else None
        yield World(rank, size, int(os.environ.get("LOCAL_RANK", 0)), control, watchdog)
    finally:
        watchdog.done.set()
        watchdog.join()
        dist.destroy_process_group()


def unused_part(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of the store in which only the processes that live now have written anything.

    torchrun keeps one store while it starts processes again, in which PyTorch uses the same keys as before, so that
    they may take the address of one that died for that of its successor. Its count of the restarts is no name for a
    part: machines can differ in it. So each process shows a name never used before, and the main one answers under it
    with the name of the part, until all have taken that: what one shows may still be its predecessor's.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"gpt2/arrived/{rank}", name)
        part = store.get(f"gpt2/part/{name}").decode()
        store.set(f"gpt2/taken/{part}/{rank}", "")
        return dist.PrefixStore(part, store)
    while not store.check([f"gpt2/taken/{name}/{other}" for other in range(1, size)]):
        for other in range(1, size):
            arrived = store.get(f"gpt2/arrived/{other}").decode()
            store.set(f"gpt2/part/{arrived}", name)
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


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

    def __init__(self, model: "FSDPModule") -> None:
        self.model = model
        self.forward: Callable[..., Any] = cast(Callable[..., Any], model)

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

    forward: the model itself, or compiled. Sharding replaces the model's parameters, block by block.
    """
    if world.size > 1 and parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

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
        return Sharded(model)
    if deterministic:
        return FixedOrder(model, forward, world, micro_batches)
    return Plain(forward, world, device)


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Have each block keep only its input for the backward pass and compute the rest again there, in place."""
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def parts_of(model: nn.Module) -> dict[str, Part]:
    """What this process has of every parameter, by name; they share its memory."""
    if is_sharded(model):
        cast("FSDPModule", model).reshard()  # an evaluation leaves some of them whole
    return {name: part_of(parameter) for name, parameter in model.named_parameters()}


def is_sharded(sharded: object) -> bool:
    """Whether a tensor or a module is in parts. Asked without importing what would say, which takes a second."""
    return hasattr(sharded, "full_tensor") or hasattr(sharded, "unshard")


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that processes have; any other as it is."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def part_of(tensor: Tensor) -> Part:
    """What this process has of a tensor. fully_shard gives rows out as `torch.chunk` does."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return Part(tensor, tuple(tensor.shape))
    sharded = cast("DTensor", tensor)
    rows = sharded.to_local()
    first = min(sharded.device_mesh.get_local_rank() * -(-len(sharded) // sharded.device_mesh.size()), len(sharded))
    return Part(rows, tuple(sharded.shape), first)


def part_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of this process's part of a whole `tensor`, where the parameter is in parts; else of all of it."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    here = part_of(parameter)
    rows = tensor[here.first : here.first + len(here.rows)].to(parameter.device, copy=True)
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
