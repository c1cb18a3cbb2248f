"""What this machine can do: devices, number formats, peak rates."""

import functools
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from gpt2.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Dense bf16 (fp16 where there is no bf16) tensor-core FLOP/s from NVIDIA's data sheets, by the name the
# driver reports. A GPU that is not listed is measured instead.
DATA_SHEET_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla T4": 65e12,
}

CONTAINER = Path("/sys/fs/cgroup")
"""Control group that a container sees as its own, version 2."""
CPU_INFO = Path("/proc/cpuinfo")
"""Where Linux says what the processor can do."""
PROCESS = Path("/proc/self/stat")
"""Where Linux says when this process began."""
PEAK_SECONDS = 0.2
"""Time for the matrix products that show how fast a device is."""
SMALLEST_PRODUCT = 256
"""Size of the first of them: 0.07 s where PyTorch has only a plain loop for the format."""


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`, which takes the best there is.

    A CUDA device always has an index. Of several processes on a machine, process `local_rank` takes GPU
    N + local_rank, where N is 0 unless the name gives it. Raises UserError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    found = re.fullmatch(r"(cpu|mps)(?::0)?|cuda(?::(\d+))?", name, re.ASCII)  # torch takes cuda:256 for cuda:0
    if found is None:
        raise UserError(f"no device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if found[1] is None:
        return _pick_gpu(name, int(found[2] or 0), local_rank)
    if found[1] == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps is not available on this machine; use --device=cpu or --device=auto")
    return torch.device(found[1])


def _pick_gpu(name: str, first: int, local_rank: int) -> torch.device:
    """The GPU of process `local_rank`, where process 0 takes GPU `first`. Raises UserError."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = first + local_rank
    if wanted < count:
        return torch.device("cuda", wanted)
    there = {0: "no CUDA GPU", 1: "1 GPU (cuda:0)"}.get(count, f"{count} GPUs (cuda:0 to cuda:{count - 1})")
    if first >= count:
        other = "--device=cpu or --device=auto" if count == 0 else "--device=cuda or one of these"
        raise UserError(f"device={name} is not available: PyTorch finds {there} on this machine; use {other}")
    raise UserError(
        f"device={name}: process {local_rank} of this machine needs cuda:{wanted}, and PyTorch finds {there}; start "
        f"at most --nproc={count - first} here, or let each process see more GPUs"
    )


def pick_dtype(name: str, device: torch.device) -> str:
    """The number format to compute in: `name`, or for `auto` the fastest that trains well on `device`.

    CUDA takes bfloat16 where the GPU has it and else float16. A CPU takes bfloat16 where it has AMX, and every other
    device float32. Nothing is timed, so the same machine takes the same format at every start.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"dtype is {name!r}; choose auto, {', '.join(DTYPES)}")
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is about the current GPU
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
    """Have this process compute the same bits from the same numbers, on a CPU with as many threads everywhere."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """Context in which matrix products run in `dtype`; does nothing for float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[dtype])


def peak_flops(device: torch.device, dtype: str) -> tuple[float, str]:
    """Peak matrix-product rate of `device` in FLOP/s, and where the figure is from."""
    if sheet := data_sheet_flops(device, dtype):
        return sheet, "data sheet"
    return measured_flops(device, dtype), "measured matmul"


def data_sheet_flops(device: torch.device, dtype: str) -> float | None:
    """What the maker of `device` gives, in FLOP/s, where that is known."""
    if device.type != "cuda" or dtype == "float32":
        return None
    return DATA_SHEET_FLOPS.get(torch.cuda.get_device_name(device))


@functools.cache
def measured_flops(device: torch.device, dtype: str) -> float:
    """Rate of large matrix products of `device` in FLOP/s, measured once in a process, in a fraction of a second.

    On a CPU it is at least the rate of float32, in which much of a 16-bit run is computed too.
    """
    largest = 2048 if device.type == "cpu" else 8192
    rate = best_rate(functools.partial(matmul_seconds, device, DTYPES[dtype]), largest)
    return max(rate, measured_flops(device, "float32")) if device.type == "cpu" and dtype != "float32" else rate


def best_rate(seconds_of: Callable[[int], float], largest: int) -> float:
    """The highest rate of square matrix products in FLOP/s, of sizes from SMALLEST_PRODUCT to `largest`.

    `seconds_of(size)` makes one product and returns its seconds. The size doubles as long as a product of the next
    one, with 8 times the work, is expected to fit into what is left of PEAK_SECONDS.
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
    """Seconds that the product of two (size, size) matrices of random numbers takes; size is a multiple of 256."""
    generator = torch.Generator().manual_seed(0)  # leave the global generator alone
    block = torch.randn(256, 256, generator=generator).to(device, dtype)
    a = block.repeat(size // 256, size // 256)
    synchronize(device)
    start = time.perf_counter()
    a @ a
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_since_process_start() -> float | None:
    """Seconds since the system started this process, Python's own start included; None where it does not say."""
    try:
        ticks = int(PROCESS.read_text().rpartition(")")[2].split()[19])  # the name in brackets may hold anything
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):  # another system
        return None


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most: of tensors on a GPU, of everything on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int:
    """Bytes that could be allocated now: on a GPU, or of the machine or the container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(free, free_in_container(CONTAINER))


def free_in_container(group: Path) -> int:
    """Bytes that Linux's control group may take, with cached files that would give way; huge without a limit."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # another system, or "max"
        return sys.maxsize
    return max(0, limit - used + (int(cached[1]) if cached else 0))


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def about(device: torch.device) -> dict[str, str]:
    """What figures of this device are worth knowing with: it, the machine around it, PyTorch's version."""
    machine = f"{platform.node()} ({platform.system()} {platform.machine()}, {os.cpu_count()} cores)"
    return {"device": describe(device), "machine": machine, "torch": torch.__version__}


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is what PyTorch raises where a GPU or a CPU has no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        text in str(error) for text in ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory")
    )
