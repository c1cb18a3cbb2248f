"""Checks of folders, disks and the network."""

import errno
import os
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gpt2 import system
from gpt2.doctor.finding import Finding, ok, problem, warning
from gpt2.files import UNSUPPORTED

LEAST_SPACE = 2 * 10**9
"""Free bytes below which a run of the 124M model cannot save a checkpoint (1.5 GB)."""
HUB = "https://huggingface.co"
VOCABULARY = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
"""Address of GPT-2's vocabulary, from which tiktoken downloads it."""
Probe = Callable[[str], str]
"""A function that returns why an address cannot be reached; nothing for one that can."""


def space(name: str, free: int | None) -> Finding:
    """Check the free bytes of a disk; None where they are not known."""
    if free is None:
        return warning(name, "the free space is not known")
    text = f"{free / 1e9:,.1f} GB free"
    if free < LEAST_SPACE:
        fix = "make room, or choose another --out_dir; a checkpoint of the 124M model takes 1.5 GB"
        return problem(name, f"only {text}", fix)
    return ok(name, text)


def try_folder(folder: Path) -> dict[str, OSError | None]:
    """Write, flush and lock a temporary file in a folder, or in the nearest folder above it that exists.

    Returns the error of `write`, `fsync` and `lock`, None for each that works. Without a file, only `write` is there.
    """
    existing = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
    results: dict[str, OSError | None] = {}
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".gpt2-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            results["write"] = None
            operations: dict[str, Callable[[], object]] = {
                "fsync": lambda: os.fsync(file.fileno()),
                "lock": lambda: system.lock(file.fileno()),
            }
            for name, operation in operations.items():
                try:
                    operation()
                    results[name] = None
                except OSError as error:
                    results[name] = error
    except OSError as error:
        results.setdefault("write", error)
    return results


def writable(name: str, folder: Path, results: Mapping[str, OSError | None], fix: str) -> Finding:
    """Check that a folder can be written, from the results of `try_folder`."""
    error = results.get("write")
    if error is None:
        return ok(name, f"{folder} can be written")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return problem(name, f"{folder} has no space left ({error.strerror})", "make room, or choose another folder")
    return problem(name, f"{folder} cannot be written ({error.strerror})", fix)


def safety(results: Mapping[str, OSError | None]) -> Finding:
    """Check that a file system has locks and flushes files, from the results of `try_folder`."""
    if results.get("write") is not None:
        return ok("file system", "not checked, because the folder cannot be written")
    missing = [
        text
        for name, text in (
            ("lock", "it has no file locks, so nothing stops two runs in one folder"),
            ("fsync", "it cannot flush files, so a power failure may lose the newest checkpoint"),
        )
        if results.get(name) is not None
    ]
    if not missing:
        return ok("file system", "locks and fsync work")
    strange = [e for e in results.values() if e is not None and e.errno not in UNSUPPORTED]
    why = f" ({strange[0].strerror})" if strange else ""
    return warning("file system", "; ".join(missing) + why, "choose an --out_dir on a local disk")


def reach(address: str, seconds: float) -> str:
    """Return why an address does not answer within a time; nothing where it does, with any status."""
    try:
        request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "gpt2"})
        with urllib.request.urlopen(request, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:  # something answers
        return "" if error.code < 500 else f"HTTP status {error.code}"
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, socket.gaierror):
            return "the name cannot be resolved"
        return str(getattr(reason, "strerror", None) or reason)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def hub(environment: Mapping[str, str], probe: Probe) -> Finding:
    """Check that Hugging Face's hub, or its mirror in HF_ENDPOINT, answers."""
    address = environment.get("HF_ENDPOINT") or HUB
    if environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return warning("hub", "HF_HUB_OFFLINE is set: models come only from the cache", "unset HF_HUB_OFFLINE")
    if why := probe(address):
        origin = " (from HF_ENDPOINT)" if environment.get("HF_ENDPOINT") else ""
        fix = "check the network, HTTPS_PROXY and HF_ENDPOINT; training on your own files needs no network"
        return warning("hub", f"{address}{origin} cannot be reached: {why}", fix)
    return ok("hub", f"{address} answers")


def tiktoken_cache(environment: Mapping[str, str]) -> Path | None:
    """Return the folder in which tiktoken keeps vocabularies; None where it keeps none."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if name in environment:
            return Path(environment[name]) if environment[name] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def vocabulary(cache: Path | None, files: Mapping[str, str], probe: Probe) -> Finding:
    """Check that GPT-2's vocabulary is in tiktoken's cache, or can be downloaded.

    files: for each content, the name of its file in the cache.
    """
    if cache is not None and all((cache / name).is_file() for name in files.values()):
        return ok("GPT-2 vocabulary", f"in {cache}")
    place = f"not in {cache}" if cache is not None else "not cached, because TIKTOKEN_CACHE_DIR is empty"
    if why := probe(VOCABULARY):
        names = " and ".join(f"{content} as {name}" for content, name in files.items())
        fix = f"put OpenAI's {names} into a folder and set TIKTOKEN_CACHE_DIR to it, or use --tokenizer=bpe or byte"
        return warning("GPT-2 vocabulary", f"{place}, and cannot be downloaded: {why}", fix)
    return ok("GPT-2 vocabulary", f"{place}; it can be downloaded")


def caches(environment: Mapping[str, str]) -> Iterable[tuple[str, Path, str]]:
    """Yield the name of each cache that is used, its folder, and the variable that moves it."""
    home = Path(environment.get("HOME") or "~").expanduser()
    general = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    yield "hub cache", Path(environment.get("HF_HOME") or general / "huggingface"), "HF_HOME"
    if (tiktoken := tiktoken_cache(environment)) is not None:
        yield "tiktoken cache", tiktoken, "TIKTOKEN_CACHE_DIR"
    compiled = environment.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / "torchinductor"
    yield "compile cache", Path(compiled), "TORCHINDUCTOR_CACHE_DIR"
