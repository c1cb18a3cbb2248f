"""Checks of GPUs, processor, threads and memory."""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2.doctor.finding import Finding, ok, problem, warning

LEAST_MEMORY = 2 * 10**9
"""Bytes of free memory below which only tiny models train."""
LEAST_SHARED = 2**28
"""Bytes of /dev/shm below which NCCL may fail with several GPUs; Docker gives 2^26."""
GROUPS = Path("/sys/fs/cgroup")
"""Folder of the control groups of Linux."""


@dataclass(frozen=True)
class Gpus:
    """Holds what is known about GPUs before one is used."""

    built_for: str | None
    """The CUDA version that PyTorch was built for; None for a build without CUDA."""
    names: Sequence[str]
    """Names of the GPUs that PyTorch can use."""
    has_driver: bool
    """Whether NVIDIA's driver is loaded."""
    has_card: bool
    """Whether there is an NVIDIA card on the bus."""
    has_mps: bool = False
    """Whether PyTorch can use an Apple GPU."""
    too_old: str = ""
    """Why PyTorch cannot compute on the first GPU, and what to do about it, divided by a semicolon."""


def has_nvidia_driver() -> bool:
    """Return whether NVIDIA's driver is loaded, or its tool is on PATH."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def has_nvidia_card(bus: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Return whether Linux lists a display device or accelerator of NVIDIA, with or without a driver."""
    for device in bus.glob("*"):
        with suppress(OSError):
            if (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text()[:4] == "0x03":
                return True
    return False


def gpus(found: Gpus, environment: Mapping[str, str]) -> Finding:
    """Check that PyTorch can use the GPUs of this machine."""
    if found.too_old:
        text, _, fix = found.too_old.partition("; ")
        return problem("GPU", text, fix)
    if found.names:
        return ok("GPU", f"{', '.join(found.names)} (CUDA {found.built_for})")
    if found.has_mps:
        return ok("GPU", "Apple GPU (mps)")
    if found.has_driver and found.built_for is None:
        text = "there is an NVIDIA driver, but this PyTorch is built for CPUs"
        fix = "install PyTorch's CUDA build in a new virtual environment: https://pytorch.org/get-started/locally"
        return problem("GPU", text, fix)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if found.has_driver and visible is not None and visible.strip() in ("", "-1"):
        return warning("GPU", f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    if found.has_driver:
        text = f"there is an NVIDIA driver, but PyTorch for CUDA {found.built_for} finds no GPU"
        return problem("GPU", text, "look at nvidia-smi: update the driver, or install PyTorch for an older CUDA")
    if found.has_card:
        text = "there is an NVIDIA card, but no driver"
        return problem("GPU", text, "install NVIDIA's driver; in a container, start it with docker run --gpus all")
    if found.built_for is not None:
        text = f"none: PyTorch is built for CUDA {found.built_for}, and there is no driver"
        return warning("GPU", text, "nothing, to train on the CPU; PyTorch's CPU build would save gigabytes")
    return ok("GPU", "none; training uses the CPU")


def cores_allowed(affinity: int, groups: Path = GROUPS) -> float:
    """Return the number of cores that this process may use: those it is bound to, or the limit of its container."""
    limit = float(affinity)
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (groups / "cpu.max").read_text().split()
        limit = min(limit, int(quota) / int(period))
    with suppress(OSError, ValueError, ZeroDivisionError):  # version 1, which writes -1 for no limit
        quota, period = (int((groups / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        limit = min(limit, quota / period) if quota > 0 else limit
    return limit


def threads(count: int, cores: float, environment: Mapping[str, str]) -> Finding:
    """Check that PyTorch computes with one thread for each core that it may use."""
    usable = max(1, int(cores))
    text = f"{count} for {cores:g} usable cores" if cores != 1 else f"{count} for 1 usable core"
    given = environment.get("OMP_NUM_THREADS")
    fix = "unset OMP_NUM_THREADS" if given else f"set OMP_NUM_THREADS={usable}"
    if given:
        text += f", because OMP_NUM_THREADS={given}"
    if count < usable and (count == 1 or given):
        return warning("threads", f"{text}: training on the CPU leaves cores idle", fix)
    if count > usable:
        return warning("threads", f"{text}: threads wait for each other", f"set OMP_NUM_THREADS={usable}")
    return ok("threads", text)


def processor(cpu_info: str, capability: str) -> Finding:
    """Report the vector instructions that matter, from /proc/cpuinfo and from PyTorch's own choice of kernels."""
    flags = set(re.findall(r"\w+", next(iter(re.findall(r"^(?:flags|Features)\s*:(.*)$", cpu_info, re.M)), "")))
    names = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 BF16": "avx512_bf16", "AMX": "amx_bf16", "SVE": "sve"}
    found = [name for name, flag in names.items() if flag in flags]
    text = f"{', '.join(found) or 'no vector instructions known'}; PyTorch uses {capability}"
    if "avx512f" in flags and not capability.startswith("AVX512"):
        return warning("CPU", text, "unset ATEN_CPU_CAPABILITY, or leave it if that is intended")
    if cpu_info and flags & {"sse2"} and "avx2" not in flags:
        return warning("CPU", f"{text}; training will be slow", "use a machine with AVX2 or a GPU")
    return ok("CPU", text)


def dtype(name: str, device: str, has_amx: bool) -> Finding:
    """Report the dtype that --dtype=auto takes on a device, and why."""
    reasons = {
        ("cuda", "bfloat16"): "this GPU multiplies bfloat16 fast",
        ("cuda", "float16"): "this GPU has no bfloat16",
        ("cpu", "bfloat16"): "this CPU has AMX",
        ("cpu", "float32"): "bfloat16 is faster only on CPUs with AMX" if not has_amx else "AMX is switched off",
        ("mps", "float32"): "float32 is used on Apple GPUs",
    }
    return ok("dtype", f"{name} on {device}: {reasons.get((device.split(':')[0], name), 'the default')}")


def attention(kernels: Mapping[str, str]) -> Finding:
    """Check that a fused attention kernel works. kernels: for each, why it failed, or nothing."""
    working = [name for name, error in kernels.items() if not error]
    if working:
        return ok("attention", f"fused kernels: {', '.join(working)}")
    why = "; ".join(f"{name}: {error}" for name, error in kernels.items())
    return warning("attention", f"no fused kernel works, so attention takes more memory and time ({why})")


def memory(free: int) -> Finding:
    """Check the free memory in bytes."""
    text = f"{free / 1e9:.1f} GB free"
    if free < LEAST_MEMORY:
        fix = "close other programs, or train small models only; gpt2 plan says what a run needs"
        return warning("memory", text, fix)
    return ok("memory", text)


def shared_memory(size: int | None) -> Finding:
    """Check the size of /dev/shm in bytes; None where there is none."""
    if size is None:
        return ok("/dev/shm", "none on this system")
    text = f"{size / 2**20:,.0f} MiB"
    if size < LEAST_SHARED:
        fix = "start the container with --shm-size=8g or --ipc=host, or mount -o remount,size=8g /dev/shm"
        return warning("/dev/shm", f"{text} is too small for training with several GPUs (NCCL)", fix)
    return ok("/dev/shm", text)
