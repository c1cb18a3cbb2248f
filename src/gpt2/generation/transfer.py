"""Copies between the host and a device. On a GPU neither of the two waits for the other."""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return a copy on a device of a tensor of the host. The host goes on while a GPU copies it."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Fetched:
    """Holds copies on the host of tensors of one device, which a GPU makes after what was launched before."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        device = tensors[0].device
        self._tensors, self._copied = tensors, None
        if device.type == "cuda":
            self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]  # in pinned memory
            self._copied = torch.cuda.current_stream(device).record_event()

    def wait(self) -> Sequence[Tensor]:
        """Return the copies as soon as they are made. Nothing is waited for that was launched later."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors
