"""Runs all checks on this machine: slow ones in the background, those that need PyTorch only where it works."""

import os
import platform
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from gpt2.doctor import files, hardware, software
from gpt2.doctor.finding import Finding, guarded, ok
from gpt2.errors import UserError, first_line
from gpt2.files import free_bytes
from gpt2.tokenizers import GPT2_VOCAB_FILES

T = TypeVar("T")
PROBE_SECONDS = 3.0
"""Seconds that an address on the network may take, including the resolution of its name."""
QUICK_PROBE_SECONDS = 1.5
"""The same with --quick."""
AT_ONCE = 4
"""Number of packages that are imported at the same time."""
SHARED_MEMORY = Path("/dev/shm")
CPU_INFO = Path("/proc/cpuinfo")


def later(function: Callable[[], T]) -> Future[T]:
    """Call a function in the background, in a thread that does not delay the end of this process."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def probe_within(seconds: float) -> files.Probe:
    """Return a function that says why an address cannot be reached, after a number of seconds at most."""

    def probe(address: str) -> str:
        try:
            return later(lambda: files.reach(address, seconds)).result(seconds)
        except TimeoutError:
            return f"no answer in {seconds:g} s"

    return probe


def examine(quick: bool, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Return the findings of all checks. quick: omit those that take long, torch.compile and imports of packages."""
    probe = probe_within(QUICK_PROBE_SECONDS if quick else PROBE_SECONDS)
    hub = later(lambda: guarded("hub", lambda: files.hub(environment, probe)))
    cache = files.tiktoken_cache(environment)
    words = later(lambda: guarded("GPT-2 vocabulary", lambda: files.vocabulary(cache, GPT2_VOCAB_FILES, probe)))
    compilation = None if quick else later(lambda: guarded("torch.compile", software.compilation))
    packages = later(lambda: list(of_packages(quick)))
    python = guarded("Python", lambda: software.python(sys.version_info[:3], sys.executable))
    library = guarded("C library", lambda: software.glibc(platform.libc_ver(), platform.system()))
    by_torch = list(of_torch(environment))
    findings = [python, by_torch[0], library, *by_torch[1:]]
    if compilation is not None and by_torch[0].verdict != "problem":
        findings.append(compilation.result())
    findings += [*of_folders(environment), hub.result(), words.result(), *packages.result()]
    return findings


def of_torch(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the finding about PyTorch, and those that need it if it can be imported."""
    try:
        import torch
    except BaseException as error:  # also SystemExit of a broken package
        yield software.torch_missing(error)
        return
    from gpt2 import device

    yield guarded("PyTorch", lambda: software.torch_version(torch.__version__))
    on_gpu = torch.cuda.is_available()
    gpus = known_gpus()
    yield guarded("GPU", lambda: hardware.gpus(gpus, environment))
    yield guarded("CPU", lambda: hardware.processor(read_text(CPU_INFO), torch.backends.cpu.get_cpu_capability()))
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = hardware.cores_allowed(affinity)
    yield guarded("threads", lambda: hardware.threads(torch.get_num_threads(), cores, environment))
    where = device.pick_device("cpu" if gpus.too_old else "auto")
    dtype = device.pick_dtype("auto", where)
    flags = read_text(CPU_INFO)
    yield guarded("dtype", lambda: hardware.dtype(dtype, str(where), "amx_bf16" in flags))
    yield guarded("attention", lambda: hardware.attention(attention_kernels(str(where), dtype)))
    yield guarded("memory", lambda: hardware.memory(device.free_memory(where)))
    yield guarded("compiler", lambda: software.compiler(environment, on_gpu))
    yield guarded("decoding", software.decoding)


def known_gpus() -> hardware.Gpus:
    """Return what PyTorch and the system know about GPUs."""
    import torch

    from gpt2 import device

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    too_old = ""
    try:
        device.pick_device("auto")
    except UserError as error:
        too_old = str(error)
    return hardware.Gpus(
        built_for=torch.version.cuda,
        names=[torch.cuda.get_device_name(i) for i in range(count)],
        has_driver=hardware.has_nvidia_driver(),
        has_card=hardware.has_nvidia_card(),
        has_mps=torch.backends.mps.is_available(),
        too_old=too_old,
    )


def attention_kernels(where: str, dtype: str) -> dict[str, str]:
    """Return, for each fused kernel, why it cannot compute causal attention; an empty text where it can."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    kernels = {"flash": SDPBackend.FLASH_ATTENTION}
    if where.startswith("cuda"):
        kernels |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if where == "mps":  # PyTorch has one kernel there, which none of these names stands for
        return {"mps": ""}
    q = torch.zeros(1, 1, 64, 64, device=where, dtype=getattr(torch, dtype))
    found = {}
    for name, backend in kernels.items():
        try:
            with sdpa_kernel(backend):
                scaled_dot_product_attention(q, q, q, is_causal=True)
            found[name] = ""
        except RuntimeError as error:
            found[name] = first_line(error)
    return found


def of_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the findings about the current folder, the caches and shared memory."""
    here = Path.cwd()
    results = files.try_folder(here)
    yield guarded("this folder", lambda: files.writable("this folder", here, results, "choose another folder"))
    yield guarded("disk space", lambda: files.space("disk space", free_bytes(here)))
    yield guarded("file system", lambda: files.safety(results))
    for name, folder, variable in files.caches(environment):
        fix = f"set {variable} to a folder that you can write"
        yield guarded(name, lambda n=name, p=folder, f=fix: files.writable(n, p, files.try_folder(p), f))
    yield guarded("/dev/shm", lambda: hardware.shared_memory(size_of(SHARED_MEMORY)))


def of_packages(quick: bool) -> Iterator[Finding]:
    """Yield one finding for all required packages that work, and one for each other package."""
    needed, optional = software.requirements(), software.OPTIONAL
    names = [*software.REQUIRED, *optional]
    errors = {} if quick else import_errors(names)
    found = {
        name: guarded(
            name,
            lambda n=name: software.package(
                n, optional.get(n, ""), software.version_of(n), needed.get(n, ""), errors.get(n, "")
            ),
        )
        for name in names
    }
    if all(found[name].verdict == "ok" for name in software.REQUIRED):
        what = "are installed" if quick else "are installed and can be imported"
        yield ok("packages", f"all {len(software.REQUIRED)} that are needed {what}")
    yield from (f for name, f in found.items() if name in optional or f.verdict != "ok")


def import_errors(names: list[str]) -> dict[str, str]:
    """Return why each package cannot be imported, or an empty text; AT_ONCE are tried at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(software.import_error, names), strict=True))


def size_of(folder: Path) -> int | None:
    """Return the size in bytes of the file system of a folder; None where it does not exist."""
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def read_text(path: Path) -> str:
    """Return the text of a file; an empty one where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
