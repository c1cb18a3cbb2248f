"""What is chosen on machines of every kind, none of which is needed."""

from contextlib import nullcontext

import pytest
import torch

from gpt2 import device
from gpt2.errors import UserError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Makes this a machine with `count` CUDA GPUs, or with Apple's GPU."""

    def machine(count: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return machine


@pytest.mark.parametrize(
    ("count", "mps", "name", "local_rank", "expected"),
    [
        (0, False, "auto", 0, "cpu"),
        (0, False, "auto", 3, "cpu"),
        (0, False, "cpu:0", 0, "cpu"),
        (0, True, "auto", 0, "mps"),
        (0, True, "mps:0", 0, "mps"),
        (1, True, "auto", 0, "cuda:0"),
        (1, False, "cuda", 0, "cuda:0"),
        (8, False, "auto", 7, "cuda:7"),
        (8, False, "cuda", 2, "cuda:2"),
        (3, False, "cuda:1", 0, "cuda:1"),
        (3, False, "cuda:1", 1, "cuda:2"),
        (3, False, "cpu", 1, "cpu"),
    ],
)
def test_every_process_has_a_device_of_its_own(gpus, count, mps, name, local_rank, expected) -> None:
    gpus(count, mps)
    found = device.pick_device(name, local_rank)
    assert str(found) == expected
    assert found.type != "cuda" or found.index is not None  # torch.cuda.set_device refuses one without


@pytest.mark.parametrize(
    ("count", "name", "local_rank", "says"),
    [
        (0, "cuda", 0, "device=cuda.* is not available: PyTorch finds no CUDA GPU on this machine; use --device=cpu"),
        (
            0,
            "cuda:1",
            0,
            "device=cuda.* is not available: PyTorch finds no CUDA GPU on this machine; use --device=cpu",
        ),
        (0, "mps", 0, "device=mps is not available on this machine; use --device=cpu"),
        (1, "cuda:1", 0, "cuda:1 is not available: PyTorch finds 1 GPU \\(cuda:0\\) on"),
        (2, "cuda:2", 0, "cuda:2 is not available: PyTorch finds 2 GPUs \\(cuda:0 to cuda:1\\) on"),
        (2, "cuda:256", 0, "cuda:256 is not available: PyTorch finds 2 GPUs"),
        (2, "cuda:1", 1, "process 1 of this machine needs cuda:2, and PyTorch finds 2 GPUs .* --nproc=1 "),
        (2, "auto", 3, "process 3 of this machine needs cuda:3, and PyTorch finds 2 GPUs .* --nproc=2 "),
        (1, "cuda:x", 0, "no device 'cuda:x'; choose auto, cpu"),
        (1, "cuda:", 0, "no device"),
        (1, "cuda:-1", 0, "no device"),
        (1, "cuda:٣", 0, "no device"),
        (1, "xpu", 0, "no device"),
        (1, "cpu:1", 0, "no device"),
        (1, "mps:1", 0, "no device"),
        (1, "", 0, "no device"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_one_line(gpus, count, name, local_rank, says) -> None:
    gpus(count)
    with pytest.raises(UserError, match=says) as error:
        device.pick_device(name, local_rank)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_takes_bfloat16_where_it_has_it(
    has_bfloat16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda where: asked.append(where) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert device.pick_dtype("auto", torch.device("cuda:1")) == expected
    assert asked == [torch.device("cuda:1")]  # of two GPUs the first may be another kind


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 0 bytes, max allowed: 242.48 MiB). Tried to allocate"
        ),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_lack_of_memory_is_known_on_every_device(error: RuntimeError) -> None:
    assert device.is_out_of_memory(error)
    assert not device.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
