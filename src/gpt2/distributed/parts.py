"""Tensors that lie in parts in several processes, and what of them is here."""

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from gpt2.tensor_file import TensorShard

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def parts_of(model: nn.Module) -> dict[str, TensorShard]:
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


def holders(tensor: Tensor) -> int:
    """Processes that have a part of a tensor; 1 where it is whole."""
    return cast("DTensor", tensor).device_mesh.size() if is_sharded(tensor) else 1


def apart(stack: Tensor) -> Tensor:
    """The stacked tensors this process computes with, each whole: its share where they lie in parts, else all."""
    if not is_sharded(stack):
        return stack
    from torch.distributed.tensor import Shard

    return cast("DTensor", stack).redistribute(placements=[Shard(0)]).to_local()


def together(mine: Tensor, stack: Tensor) -> Tensor:
    """The stack of which `apart` gave this process its tensors, made of what all have of it now."""
    if not is_sharded(stack):
        return mine
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(stack, DTensor)
    made = DTensor.from_local(
        mine.contiguous(), stack.device_mesh, [Shard(0)], shape=stack.shape, stride=stack.stride()
    )
    return made.redistribute(placements=stack.placements)


def part_of(tensor: Tensor) -> TensorShard:
    """What this process has of a tensor. fully_shard gives rows out as `torch.chunk` does."""
    tensor = tensor.detach()
    if not is_sharded(tensor):
        return TensorShard(tensor, tuple(tensor.shape))
    sharded = cast("DTensor", tensor)
    rows = sharded.to_local()
    first = min(sharded.device_mesh.get_local_rank() * -(-len(sharded) // sharded.device_mesh.size()), len(sharded))
    return TensorShard(rows, tuple(sharded.shape), first)


def part_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of this process's part of a whole `tensor`, where the parameter is in parts; else of all of it."""
    if not is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    here = part_of(parameter)
    rows = tensor[here.first_row : here.first_row + len(here.values)].to(parameter.device, copy=True)
    return DTensor.from_local(
        rows, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
