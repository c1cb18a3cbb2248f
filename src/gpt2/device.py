"""Chooses the device and the dtype, and finds out peak rates, memory and other facts about this machine."""

import ctypes
import functools
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from gpt2 import system
from gpt2.errors import UserError
from gpt2.gpus import known_gpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes of matrix products, by their names in settings."""

CONTAINER = Path("/sys/fs/cgroup")
"""Folder of the control group (version 2) of a container, as seen inside it."""
CPU_INFO = Path("/proc/cpuinfo")
"""File in which Linux lists what the processor supports."""
PROCESS = Path("/proc/self/stat")
"""File in which Linux records when this process started."""
PEAK_SECONDS = 0.2
"""Maximum number of seconds for the matrix products that measure the rate of a device."""
SMALLEST_PRODUCT = 256
"""Size of the first of these products. It takes 0.07 s where PyTorch has no optimized kernel for the dtype."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
"""Options of mallopt(3)."""

OUT_OF_MEMORY = (
    "the run does not fit into memory; lower --batch_size and raise --gradient_accumulation_steps to keep the tokens "
    "per step, add --activation_checkpointing, or share the model between more processes with --zero_stage=1 or "
    "--parallel=fsdp"
)
"""Message for a run that does not fit into memory: what helps."""


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device called `name`: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for the best one available.

    A CUDA device always has an index. Process `local_rank` of a machine gets GPU N + local_rank, where N is 0 unless
    the name contains it. Raises UserError for a device that is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    match = re.fullmatch(r"(cpu|mps)(?::0)?|cuda(?::(\d{1,9}))?", name, re.ASCII)  # torch takes cuda:256 for cuda:0
    if match is None:
        raise UserError(f"no device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if match[1] is None:
        return _pick_gpu(name, int(match[2] or 0), local_rank)
    if match[1] == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps is not available on this machine; use --device=cpu or --device=auto")
    return torch.device(match[1])


def _pick_gpu(name: str, first: int, local_rank: int) -> torch.device:
    """Return the GPU of process `local_rank`, where process 0 gets GPU `first`. Raises UserError if there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = first + local_rank
    if wanted < count:
        device = torch.device("cuda", wanted)
        _check_supported(device)
        return device
    gpus = {0: "no CUDA GPU", 1: "1 GPU (cuda:0)"}.get(count, f"{count} GPUs (cuda:0 to cuda:{count - 1})")
    if first >= count:
        other = "--device=cpu or --device=auto" if count == 0 else "--device=cuda or one of these"
        raise UserError(f"device={name} is not available: PyTorch finds {gpus} on this machine; use {other}")
    raise UserError(
        f"device={name}: process {local_rank} of this machine needs cuda:{wanted}, and PyTorch finds {gpus}; start "
        f"at most --nproc={count - first} on this machine, or let each process see more GPUs"
    )


def _check_supported(device: torch.device) -> None:
    """Raise UserError for a GPU that is older than those for which this PyTorch is built."""
    major, minor = torch.cuda.get_device_capability(device)
    numbers = [arch.removeprefix("sm_") for arch in torch.cuda.get_arch_list()]  # no numbers for AMD's GPUs
    oldest = min((int(number) for number in numbers if number.isdecimal()), default=0)
    if 10 * major + minor < oldest:
        raise UserError(
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and PyTorch "
            f"{torch.__version__} is built for {oldest // 10}.{oldest % 10} and newer; install PyTorch's build for "
            "CUDA 12.6, which supports V100 and older GPUs (--index-url https://download.pytorch.org/whl/cu126), or "
            "use --device=cpu"
        )


def pick_dtype(name: str, device: torch.device) -> str:
    """Return the name of the dtype of matrix products: `name`, or for `auto` the fastest that trains well.

    This is bfloat16 on a CUDA GPU that supports it and on a CPU with AMX, float16 on other CUDA GPUs, and float32
    elsewhere. Nothing is timed, so a machine gets the same dtype at every start. Raises UserError for unknown names.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"dtype is {name!r}; choose auto, {', '.join(DTYPES)}")
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # the answer is about the current GPU
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and has_amx() else "float32"


def has_amx() -> bool:
    """Return whether the processor has Intel's matrix unit for bfloat16, and PyTorch may use it.

    The unit multiplies bfloat16 several times as fast as float32; on other processors bfloat16 trains slower
    (docs/speed.md). PyTorch's attention uses it only together with AVX-512, which `ATEN_CPU_CAPABILITY` can switch
    off.
    """
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:  # another system
        return False
    highest = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    allowed = highest in ("DEFAULT", "ALL") or "AMX" in highest
    allowed &= torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return flags is not None and {"amx_tile", "amx_bf16"} <= set(flags[1].split()) and allowed


def make_deterministic() -> None:
    """Make this process compute the same bits from the same numbers.

    On a CPU this fixes the number of threads too, to OMP_NUM_THREADS or 1.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # warn_only leaves flash attention as it is
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Return a context in which matrix products run in `dtype`; for float32 it changes nothing."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[dtype])


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 matrix products in float32 inside the `with` block, also where TF32 is allowed outside it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_flops(device: torch.device, dtype: str) -> tuple[float, str]:
    """Return the peak rate of matrix products on `device` in FLOP/s, and the origin of the figure in words."""
    if sheet := data_sheet_flops(device, dtype):
        return sheet, "data sheet"
    return measured_flops(device, dtype), "measured matmul"


def data_sheet_flops(device: torch.device, dtype: str) -> float | None:
    """Return the peak rate of `device` in FLOP/s by its data sheet; None if that is unknown."""
    if device.type != "cuda" or dtype == "float32":
        return None
    gpu = known_gpu(torch.cuda.get_device_name(device))
    if gpu is None or (dtype == "bfloat16" and not gpu.has_bfloat16):
        return None
    return gpu.tflops * 1e12


@functools.cache
def measured_flops(device: torch.device, dtype: str) -> float:
    """Measure the rate of large matrix products on `device` in FLOP/s, once per process, in a fraction of a second.

    On a CPU the result is at least the rate of float32, in which much of a 16-bit run is computed too.
    """
    largest = 2048 if device.type == "cpu" else 8192
    rate = best_rate(functools.partial(matmul_seconds, device, DTYPES[dtype]), largest)
    return max(rate, measured_flops(device, "float32")) if device.type == "cpu" and dtype != "float32" else rate


def best_rate(seconds_of: Callable[[int], float], largest: int) -> float:
    """Return the highest rate of square matrix products, in FLOP/s, of sizes from SMALLEST_PRODUCT to `largest`.

    `seconds_of(size)` computes one product and returns its seconds. The size doubles as long as a product of the next
    size, with 8 times the work, is expected to fit into the rest of PEAK_SECONDS.
    """
    size, spent, best = SMALLEST_PRODUCT, 0.0, 0.0
    while size <= largest:
        fastest = float("inf")
        for _ in range(3):
            took = seconds_of(size)
            spent, fastest = spent + took, min(fastest, took)
            if spent + fastest > PEAK_SECONDS:
                break
        best = max(best, 2 * size**3 / fastest)
        if spent + 8 * fastest > PEAK_SECONDS:
            break
        size *= 2
    return best


def matmul_seconds(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the seconds that a product of two random (size, size) matrices takes; size is a multiple of 256."""
    generator = torch.Generator().manual_seed(0)  # the global generator must not advance
    block = torch.randn(256, 256, generator=generator).to(device, dtype)
    a = block.repeat(size // 256, size // 256)
    synchronize(device)
    start = time.perf_counter()
    a @ a
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has completed all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_since_process_start() -> float | None:
    """Return the seconds since the system started this process, before Python's start; None if it is unknown."""
    try:
        ticks = int(PROCESS.read_text().rpartition(")")[2].split()[19])  # the name in brackets may hold anything
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):  # another system
        return None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: of tensors on a GPU, of everything on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return system.peak_memory()


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated now, on a GPU, or else on this machine or in its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(system.free_memory(), free_in_container(CONTAINER))


def free_in_container(group: Path) -> int:
    """Return the bytes that the control group `group` can still allocate, including cached files that can be dropped.

    Without a limit, or on another system than Linux, this is `sys.maxsize`.
    """
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # another system, or "max"
        return sys.maxsize
    return max(0, limit - used + (int(cached[1]) if cached else 0))


def describe(device: torch.device) -> str:
    """Return the device in words, with the name of a GPU or the number of CPU threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} threads)" if threads > 1 else "cpu (1 thread)"
    return str(device)


def about(device: torch.device) -> dict[str, str]:
    """Return facts to record with figures measured here: the device, the machine and PyTorch's version."""
    machine = f"{platform.node()} ({platform.system()} {platform.machine()}, {os.cpu_count()} cores)"
    return {"device": describe(device), "machine": machine, "torch": torch.__version__}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether PyTorch raised this error because a GPU or a CPU has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        text in str(error) for text in ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory")
    )


def keep_freed_memory() -> None:
    """Make glibc keep the memory that this process frees, for its next allocation; do nothing without glibc.

    Every optimizer step frees large tensors and allocates them again. Getting fresh pages from the system each time
    would take a tenth to a fifth of the step's time on a CPU.
    """
    _mallopt((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))


@contextmanager
def large_tensors_apart() -> Iterator[None]:
    """Make glibc map each large tensor that is made meanwhile by itself, so that freeing one leaves no gap.

    Gaps would add up to the size of a model that is read from a file matrix by matrix.
    """
    _mallopt((M_MMAP_THRESHOLD, 2**20))
    try:
        yield
    finally:
        _mallopt((M_MMAP_THRESHOLD, 2**25))  # the largest that glibc would choose


def _mallopt(*options: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in options:
            mallopt(option, value)


@contextmanager
def out_of_memory_advice() -> Iterator[None]:
    """Turn an out-of-memory error of the device into a UserError with advice."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise UserError(OUT_OF_MEMORY) from error
        raise
