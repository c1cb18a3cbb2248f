"""Files that are whole or absent: atomic publishing, manifests of hashes, verified downloads."""

import fcntl
import hashlib
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2.errors import UserError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_of(target: Path) -> Path:
    """Where `publish` has a file or folder made."""
    return target.parent / f".{target.name}.tmp"


def free_bytes(path: Path) -> int:
    """What is free on the disk of a path, or of where it would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; make a file or folder there and it becomes `target` whole.

    Contents are flushed to disk before the rename, so that a crash at any moment leaves either what was
    there before or the complete new version. A file replaces a file; a folder replaces nothing but an empty
    one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(target)
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            for path in sorted(temporary.rglob("*")):
                _fsync(path)
        _fsync(temporary)
        temporary.replace(target)
        _fsync(target.parent)
    finally:
        _remove(temporary)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path`; yields False at once where another process holds it. It ends with the process."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_text(target: Path, text: str) -> None:
    """Publish `text` as the whole content of `target`."""
    with publish(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Record the size and SHA-256 of every file in `folder`; written last, it vouches for the rest."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(_as_manifest({"files": files}), encoding="utf-8")


def _as_manifest(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def manifest_problem(folder: Path) -> str | None:
    """What is wrong with a folder that `write_manifest` sealed, in a few words; None when it is intact."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        content = json.loads(text)
        files = content["files"]
        if text != _as_manifest(content):
            return f"{MANIFEST} is not as it was written"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes where {expected['bytes']} were written"
            if sha256(path) != expected["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None


def download(url: str, target: Path, expected_sha256: str, otherwise: str) -> None:
    """Fetch `url` into `target` unless its SHA-256 differs.

    `otherwise` ends the error line: what the user can do without this download.
    """
    try:
        with publish(target) as temporary:
            with urllib.request.urlopen(url, timeout=30) as response, temporary.open("wb") as out:
                shutil.copyfileobj(response, out)
            if (found := sha256(temporary)) != expected_sha256:
                raise UserError(f"{url} has SHA-256 {found}, not the expected {expected_sha256}; {otherwise}")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot download {url} ({reason}); {otherwise}") from error
