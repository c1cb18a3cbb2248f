"""Sharding: how FSDP shards a model over processes, and which shard of a tensor this process has."""

import itertools
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt2.tensor_file import TensorShard

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def shard_model(
    model: nn.Module, device: torch.device, replicas: int, shards: int, cpu_offload: bool, half: bool
) -> None:
    """Shard the parameters of a GPT over processes, block by block, with PyTorch's fully_shard, in place.

    Each of `replicas` groups of `shards` consecutive processes has all of the model (HSDP; with one group, FSDP). The
    gradients become sums over processes, as everywhere else here, where fully_shard takes the mean. half: gather and
    compute the blocks in bfloat16, also in evaluations. Their gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # It warns that logits are a view, which nothing here changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # It warns of what it does in place of an all-to-all, which gloo does not have.
    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)
    shape, names = ((shards,), ("shard",)) if replicas == 1 else ((replicas, shards), ("replicate", "shard"))
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, shape, mesh_dim_names=names),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy(),
    }
    blocks = list(model.get_submodule("transformer.h").children())
    for block in blocks:
        if half:  # the residual stream stays in float32, as it does under autocast
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            block.forward = _under_autocast(block.forward, device.type)
            fully_shard(block, mp_policy=policy, **settings)
        else:
            fully_shard(block, **settings)
    # The embeddings stay gathered after a forward pass, because the head needs them outside it.
    fully_shard(model, reshard_after_forward=False, **settings)
    for module in (model, *blocks):
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for module, following in itertools.pairwise((model, *blocks)):  # its parameters travel during the computation
        cast("FSDPModule", module).set_modules_to_forward_prefetch([cast("FSDPModule", following)])
    register_fsdp_forward_method(model, "hidden")


def _under_autocast(forward: Callable[..., Tensor], device: str) -> Callable[..., Tensor]:
    """Return a function that computes in bfloat16 where the caller does not, because the parameters are in it."""

    def computed(*inputs: Any) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return forward(*inputs)

    return computed


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
    mesh, rows = sharded.device_mesh, sharded.to_local()
    first = min(mesh.get_local_rank(mesh.ndim - 1) * -(-len(sharded) // mesh.size(mesh.ndim - 1)), len(sharded))
    is_copy = mesh.ndim > 1 and mesh.get_local_rank(0) > 0
    return TensorShard(rows, tuple(sharded.shape), first, is_copy)


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


def compute_device(parameter: Tensor) -> torch.device:
    """Return the device that computes with a parameter, whose shards may be kept in CPU memory meanwhile."""
    if not is_sharded(parameter):
        return parameter.device
    kind = cast("DTensor", parameter).device_mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from the processes where it is sharded. All processes must call this."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_count(tensor: Tensor) -> int:
    """Return the number of processes over which a tensor is sharded; 1 for a tensor that is not."""
    if not is_sharded(tensor):
        return 1
    mesh = cast("DTensor", tensor).device_mesh
    return mesh.size(mesh.ndim - 1)


def distribute_stack(stack: Tensor, processes: int) -> Tensor:
    """Return this process's share of stacked tensors, each of them complete.

    stack: (n, …), sharded by any dimension, or complete in each of `processes` processes. All processes must call
    this.
    """
    if is_sharded(stack):
        return cast("DTensor", stack).redistribute(placements=_by_first_dimension(stack)).to_local()
    each = -(-len(stack) // processes)
    return stack[each * dist.get_rank() :][:each] if processes > 1 else stack


def collect_stack(share: Tensor, stack: Tensor, processes: int) -> Tensor:
    """Return a stack, sharded or complete as `stack` is, of the shares that `distribute_stack` gave the processes.

    Its dtype is that of the shares.
    """
    if is_sharded(stack):
        from torch.distributed.tensor import DTensor

        assert isinstance(stack, DTensor)
        made = DTensor.from_local(
            share.contiguous(),
            stack.device_mesh,
            _by_first_dimension(stack),
            shape=stack.shape,
            stride=stack.stride(),
        )
        return made.redistribute(placements=stack.placements)
    if processes == 1:
        return share
    each = -(-len(stack) // processes)
    sent = share.new_zeros(each, *stack.shape[1:])
    sent[: len(share)] = share
    found = sent.new_empty(each * processes, *stack.shape[1:])
    dist.all_gather_into_tensor(found, sent)
    return found[: len(stack)]


def _by_first_dimension(stack: Tensor) -> list[Any]:
    """Return the placements of a tensor like `stack` that is sharded by its first dimension."""
    from torch.distributed.tensor import Replicate, Shard

    return [*[Replicate()] * (cast("DTensor", stack).device_mesh.ndim - 1), Shard(0)]
