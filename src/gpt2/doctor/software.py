"""Checks of Python, PyTorch, the compiler and the packages."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata

from gpt2.doctor.finding import Finding, ok, problem, warning
from gpt2.errors import first_line

OLDEST_PYTHON = (3, 11)
TORCH_VERSIONS = ((2, 10), (2, 14))
"""First and last version of PyTorch that this program is tested with."""
OLDEST_GLIBC = (2, 28)
"""Oldest version of glibc for which PyTorch 2.10 and later are built (manylinux_2_28)."""
OPTIONAL = {
    "transformers": "gpt2 validate",
    "lm-eval": "gpt2 eval harness",
    "zstandard": "reading .zst files",
    "wandb": "--wandb_log",
    "trackio": "--trackio_log",
    "tensorboard": "--tensorboard_log",
}
"""Optional packages, and what needs them."""
REQUIRED = (
    "numpy",
    "safetensors",
    "tiktoken",
    "rustbpe",
    "huggingface-hub",
    "pyarrow",
    "cyclopts",
    "rich",
    "matplotlib",
)
"""Packages that are always needed, besides PyTorch."""
IMPORT_SECONDS = 12.0
"""Seconds after which the import of a package is given up."""
NO_MODULE, ABSENT = 91, "no module of that name"
"""Exit status of a process that finds no module, and its meaning."""
COMPILE_SECONDS = 15.0
"""Seconds after which a tiny compilation is given up."""
COMPILE = """
import torch
import torch._inductor.config as config
if hasattr(config, "cpp_cache_precompile_headers"):
    config.cpp_cache_precompile_headers = False  # that would take longer than the function
print(torch.compile(lambda x: torch.relu(x) * 2)(torch.ones(8)).sum())
"""
"""Compiles a tiny function."""


def python(version: Sequence[int], executable: str) -> Finding:
    """Check the version of Python."""
    text = f"{'.'.join(map(str, version[:3]))} ({executable})"
    if tuple(version[:2]) < OLDEST_PYTHON:
        return problem("Python", text, "use Python 3.11 or newer, in a new virtual environment")
    return ok("Python", text)


def torch_version(version: str) -> Finding:
    """Check whether this program is tested with a version of PyTorch, such as `2.13.0+cpu`."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    first, last = TORCH_VERSIONS
    supported = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
    if numbers < first:
        return problem("PyTorch", f"{version} is too old", f"pip install 'torch>={first[0]}.{first[1]}'")
    if numbers > last:
        fix = f"if something fails, install a version from {supported}"
        return warning("PyTorch", f"{version} is newer than {supported}, which are tested", fix)
    return ok("PyTorch", version)


def torch_missing(error: BaseException) -> Finding:
    """Return the finding for a PyTorch that cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return problem("PyTorch", "not installed", "pip install torch")
    fix = "install it again in a new virtual environment; glibc below shows whether this system is too old"
    return problem("PyTorch", f"the import fails: {first_line(error)}", fix)


def glibc(library: tuple[str, str], system: str) -> Finding:
    """Check the C library, as `platform.libc_ver()` names it, against what PyTorch's packages need."""
    name, version = library
    if system != "Linux":
        return ok("C library", f"not glibc ({system})")
    needed = ".".join(map(str, OLDEST_GLIBC))
    if name != "glibc":
        fix = "use a system with glibc, such as Debian or Ubuntu in place of Alpine"
        return problem("C library", f"{name or 'unknown'}: PyTorch's packages need glibc {needed}", fix)
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST_GLIBC:
        fix = "update the system, or run in a container with a newer one"
        return problem("C library", f"glibc {version} is too old: PyTorch's packages need {needed}", fix)
    return ok("C library", f"glibc {version}")


def compiler(environment: Mapping[str, str], on_gpu: bool) -> Finding:
    """Check whether there is a compiler for torch.compile: of C++ for a CPU, of C for Triton's launcher on a GPU."""
    path = environment.get("PATH", "")
    if chosen := environment.get("CC" if on_gpu else "CXX"):
        if shutil.which(chosen, path=path):
            return ok("compiler", f"{chosen}, from the environment")
        name = "CC" if on_gpu else "CXX"
        return warning("compiler", f"{name}={chosen} is not on PATH", f"unset {name}, or install {chosen}")
    names = ("gcc", "clang", "cc") if on_gpu else ("clang++",) if sys.platform == "darwin" else ("g++",)
    if found := next((found for name in names if (found := shutil.which(name, path=path))), None):
        return ok("compiler", found)
    language, package = ("C", "gcc") if on_gpu else ("C++", "g++")
    fix = f"install {package} (apt-get install {package}), or train with --no-compile"
    return warning("compiler", f"there is no {language} compiler on PATH, so torch.compile cannot work", fix)


def decoding() -> Finding:
    """Check whether steps of decoding on a CPU are computed by compiled code."""
    from gpt2.generation.native import attempt

    found = attempt("float32")
    if not isinstance(found, str):
        return ok("decoding", "compiled code computes the steps on a CPU")
    fix = "" if "XDG_CACHE_HOME" in found else "install a C compiler with OpenMP, such as gcc, or name one in CC"
    return warning("decoding", f"PyTorch computes the steps on a CPU, which is slower: {found}", fix)


def compilation(seconds: float = COMPILE_SECONDS, code: str = COMPILE) -> Finding:
    """Compile a tiny function in another process, which is ended after a number of seconds."""
    fix = "train with --no-compile, or fix the compiler"
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_VEC_ISA_OK": "1"}  # start sooner
    try:
        with tempfile.TemporaryDirectory() as cache:  # an empty one, or nothing would be compiled
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                timeout=seconds,
                env=environment | {"TORCHINDUCTOR_CACHE_DIR": cache},
            )
    except subprocess.TimeoutExpired:
        text = f"a tiny function was not compiled after {seconds:g} s; this machine may only be slow or busy"
        return warning("torch.compile", text, "try it: gpt2 bench train; train with --no-compile if it hangs")
    if done.returncode == 0:
        return ok("torch.compile", "a tiny function was compiled")
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith((" ", "Set "))]
    why = next((line for line in reversed(lines) if "Error" in line or "Exception" in line), "")
    return warning("torch.compile", f"it fails: {why or f'exit status {done.returncode}'}", fix)


def requirements() -> dict[str, str]:
    """Return the least version of every package that this one requires or can use, such as `wandb: 0.19`.

    The result is empty where this package is not installed, but only on the path.
    """
    try:
        lines = metadata.requires("gpt2") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+)\s*(?:>=\s*([\d.]+))?", line) for line in lines)
    return {match[1].replace("_", "-"): match[2] or "" for match in found if match}


def version_of(package: str) -> str | None:
    """Return the installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def import_error(package: str, seconds: float = IMPORT_SECONDS) -> str:
    """Import a package in another process; return why that fails, or nothing."""
    module = package.replace("-", "_")
    is_absent = f"not importlib.util.find_spec({module!r})"
    code = f"import importlib.util, sys\nif {is_absent}: sys.exit({NO_MODULE})\nimport {module}"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return ""  # a slow disk; nothing is known to be wrong
    if done.returncode == NO_MODULE:
        return ABSENT
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[-1] if lines else f"exit status {done.returncode}"


def package(name: str, needed_by: str, version: str | None, least: str, error: str) -> Finding:
    """Check a package: its installed version, the least that is needed, and what its import says if it fails.

    needed_by: what an optional package is for; empty for one that is always needed.
    """
    verdict, suffix = (warning, f"; {needed_by} needs it") if needed_by else (problem, "")
    install = f"pip install '{name}>={least}'" if least else f"pip install {name}"
    if error and (version is not None or error != ABSENT):
        found = f"{version or 'a module of that name'} is there, but the import fails: {error}{suffix}"
        return verdict(name, found, install.replace("install", "install --force-reinstall", 1))
    if version is None and needed_by:
        return ok(name, f"not installed{suffix} ({install})")
    if version is None:
        return problem(name, "not installed", install)
    if least and _numbers(version) < _numbers(least):
        return verdict(name, f"{version} is older than {least}{suffix}", install.replace("install", "install -U", 1))
    return ok(name, version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])
