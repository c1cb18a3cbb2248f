"""Sharding: how FSDP shards a model over processes, and which shard of a tensor this process has."""

import logging
import warnings
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from gpt2.tensor_file import TensorShard

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard_model(model: nn.Module, device: torch.device, processes: int, cpu_offload: bool) -> None:
    """Shard the parameters of a GPT over all processes, block by block, with PyTorch's fully_shard, in place.

    The gradients become sums over processes, as everywhere else here, where fully_shard takes the mean.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # It warns that logits are a view, which nothing here changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # It warns of what it does in place of an all-to-all, which gloo does not have.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
    mesh = init_device_mesh(device.type, (processes,))
    policy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    for block in model.get_submodule("transformer.h").children():
        fully_shard(block, mesh=mesh, offload_policy=policy)
    # The embeddings stay gathered after a forward pass, because the head needs them outside it.
    fully_shard(model, mesh=mesh, offload_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden")


def is_sharded(sharded: object) -> bool:
    """Return whether a tensor or module is sharded, without importing PyTorch's classes, which takes a second."""
    return hasattr(sharded, "full_tensor") or hasattr(sharded, "unshard")


def shards_of(model: nn.Module) -> dict[str, TensorShard]:
    """Return this process's shard of every parameter, by name; they share the parameters' memory."""
    if is_sharded(model):
        cast("FSDPModule", model).reshard()  # an evaluation leaves the embeddings gathered
    return {name: shard_of(parameter) for name, parameter in model.named_parameters()}


def shard_of(tensor: Tensor) -> TensorShard:
    """Return this process's shard of a tensor, or all of a tensor that is not sharded.

    fully_shard splits the first dimension as `torch.chunk` does.
    """
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return TensorShard(tensor, tuple(tensor.shape))
    sharded = cast("DTensor", tensor)
    rows = sharded.to_local()
    first = min(sharded.device_mesh.get_local_rank() * -(-len(sharded) // sharded.device_mesh.size()), len(sharded))
    return TensorShard(rows, tuple(sharded.shape), first)


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy of `tensor`, of which only this process's shard where the parameter is sharded."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    local = shard_of(parameter)
    rows = tensor[local.first_row : local.first_row + len(local.values)].to(parameter.device, copy=True)
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from the processes where it is sharded. All processes must call this."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_count(tensor: Tensor) -> int:
    """Return the number of processes that have a shard of a tensor; 1 for a tensor that is not sharded."""
    return cast("DTensor", tensor).device_mesh.size() if is_sharded(tensor) else 1


def distribute_stack(stack: Tensor) -> Tensor:
    """Return this process's share of stacked tensors, each of them complete; all of a stack that is not sharded.

    stack: (n, …), sharded by any dimension. All processes must call this.
    """
    if not is_sharded(stack):
        return stack
    from torch.distributed.tensor import Shard

    return cast("DTensor", stack).redistribute(placements=[Shard(0)]).to_local()


def collect_stack(share: Tensor, stack: Tensor) -> Tensor:
    """Return a stack, sharded as `stack` is, of the shares that `distribute_stack` gave the processes."""
    if not is_sharded(stack):
        return share
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(stack, DTensor)
    made = DTensor.from_local(
        share.contiguous(), stack.device_mesh, [Shard(0)], shape=stack.shape, stride=stack.stride()
    )
    return made.redistribute(placements=stack.placements)
