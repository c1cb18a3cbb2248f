"""Files that are complete or absent: atomic publishing, manifests of hashes, verified downloads."""

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2 import system
from gpt2.errors import SPACE_ERRORS, MachineWarning, UserError, WriteError
from gpt2.streams import copy_into, is_stream

MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 20
"""Bytes of a manifest that are read; none is longer."""
DISK_ERRORS = (*SPACE_ERRORS, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of write(2), which do not name a file."""
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTTY)
"""Errors of file systems that lack an operation, such as CIFS, FUSE, or Lustre without its option flock."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(fd: int) -> None:
    """Flush an open file or folder to the disk, or warn where its file system cannot. Raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn("files cannot be flushed to this disk: after a power failure the newest may be missing or incomplete")


def _warn(text: str) -> None:
    """Warn of what the file system does not guarantee, once per process for each text."""
    warnings.warn(text, MachineWarning, stacklevel=1)


def _flush_path(path: Path) -> None:
    fd = system.open_to_flush(path)
    if fd is None:
        return
    try:
        flush(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_of(target: Path) -> Path:
    """Return the path at which `publish` lets a new file or folder be written. The name is reserved for that."""
    return target.parent / f".{target.name}.tmp"


def _temporary_inside(folder: Path) -> Path:
    """Return the path at which `publish` lets the content of an existing folder be written."""
    return folder / f".{folder.name}.tmp"


def free_bytes(path: Path) -> int:
    """Return the number of free bytes on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def check_free(target: Path, folder: bool = False) -> None:
    """Raise UserError where a file or folder that is to be written already exists.

    A device, a pipe or an open descriptor accepts any file, and an empty folder counts as free.
    """
    if is_stream(target):
        if folder:
            raise UserError(f"{target} is not a folder, and this output is one; choose another place")
    elif target.exists() and not (folder and target.is_dir() and _is_empty(target)):
        raise UserError(f"{target} already exists; choose another place, or delete it")


def _is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing, or only the remains of a killed `publish`."""
    resolved = Path(os.path.realpath(folder))
    return all(path == _temporary_inside(resolved) for path in resolved.iterdir())


@contextmanager
def publish(target: Path, folder: bool = False, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file written there becomes `target` in one step.

    With `folder` the temporary path is an empty folder to fill. Contents are flushed to disk before the rename, so
    that a crash at any moment leaves either the old or the complete new version. (Only into a folder that existed and
    was empty, the files are moved one after the other.)

    A file replaces a file and keeps its mode. A symbolic link stays, and its target is replaced. Where the target is
    a device, a pipe, a socket or an open descriptor, the bytes of the file are copied into it.

    Raises WriteError where the target cannot be written, and then leaves nothing behind. `needed` is the least number
    of bytes that will be written, for the message of that error.
    """
    if is_stream(target):
        check_free(target, folder)
        with tempfile.TemporaryDirectory() as scratch:
            temporary = Path(scratch) / "content"
            with _reported(temporary, temporary, temporary, needed):
                yield temporary
            copy_into(temporary, target)
        return
    resolved = Path(os.path.realpath(target))
    temporary = _temporary_inside(resolved) if folder and resolved.is_dir() else temporary_of(resolved)
    with _reported(target, resolved, temporary, needed):
        _clear(resolved, temporary, folder)
        try:
            resolved.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                temporary.mkdir()
            yield temporary
            _put(temporary, resolved)
        finally:
            remove(temporary)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn any OSError into a WriteError, around statements that write `target` directly and read nothing."""
    try:
        yield
    except OSError as error:
        raise _write_error(target, error) from error


def _write_error(target: Path, error: OSError, needed: int | None = None) -> WriteError:
    return WriteError(target, error, needed, free_bytes(target) if error.errno in SPACE_ERRORS else None)


@contextmanager
def _reported(target: Path, resolved: Path, temporary: Path, needed: int | None) -> Iterator[None]:
    """Turn an OSError that concerns the target into a WriteError; errors of other files are not changed."""
    try:
        yield
    except OSError as error:
        if not _concerns(error, resolved, temporary):
            raise
        raise _write_error(target, error, needed) from error


def _concerns(error: OSError, resolved: Path, temporary: Path) -> bool:
    """Return whether an error comes from writing: it names a path on the way to the target, or no path at all."""
    if error.filename is None:
        return error.errno in DISK_ERRORS
    path = Path(os.fsdecode(error.filename))
    return resolved.is_relative_to(path) or path.is_relative_to(temporary)


def _clear(resolved: Path, temporary: Path, folder: bool) -> None:
    """Remove the remains of a killed process, and nothing else. Raises where the target cannot be written."""
    if resolved.is_symlink():  # all links were followed, so that this is a loop
        raise _os_error(errno.ELOOP, resolved)
    if resolved.exists() and resolved.is_dir() != folder:
        raise _os_error(errno.ENOTDIR if folder else errno.EISDIR, resolved)
    if folder and resolved.is_dir() and not _is_empty(resolved):
        raise _os_error(errno.ENOTEMPTY, resolved)
    if not folder and temporary.is_dir() and not temporary.is_symlink():
        raise UserError(f"the folder {temporary} is in the way of {resolved.name}; move it, or delete it")
    remove(temporary)


def _os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _put(temporary: Path, resolved: Path) -> None:
    """Flush the new file or folder to the disk, and move it to its place."""
    for path in sorted(temporary.rglob("*")):
        _flush_path(path)
    _flush_path(temporary)
    if temporary.parent == resolved:
        for path in sorted(temporary.iterdir()):
            path.replace(resolved / path.name)
        _flush_path(resolved)
        return
    if resolved.exists() and temporary.is_file():
        _copy_mode(resolved.stat(), temporary)
    temporary.replace(resolved)
    _flush_path(resolved.parent)


def _copy_mode(about: os.stat_result, path: Path) -> None:
    """Give a file the mode of the file that it replaces, and its owner where that is allowed."""
    with suppress(PermissionError):
        system.copy_owner(about, path)
    path.chmod(stat.S_IMODE(about.st_mode))


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock on the file `path`, and yield True; yield False at once where another process holds it.

    The lock ends with the process. On a file system without locks, warn and yield True.
    """
    with path.open("a") as file:
        yield _lock(file.fileno(), path)


def _lock(fd: int, path: Path) -> bool:
    try:
        system.lock(fd)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn(
            f"the file system of {path.parent} has no locks: nothing stops two processes from writing to this folder"
        )
    return True


def write_bytes(target: Path, content: bytes) -> None:
    """Publish `content` as the file `target`. Raises WriteError."""
    with publish(target, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Publish `text`, in UTF-8, as the file `target`. Raises WriteError."""
    write_bytes(target, text.encode())


def write_manifest(folder: Path) -> None:
    """Record the size and SHA-256 of every file in `folder`. The manifest must be the last file to be written."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(_as_manifest({"files": files}), encoding="utf-8", newline="\n")


def _as_manifest(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def manifest_problem(folder: Path, required: Iterable[str] = (), hashes: bool = True) -> str | None:
    """Return in a few words how a folder differs from its manifest; None when it is intact.

    required: the names of files that the manifest must list. hashes: False compares only the sizes of the files.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            text = file.read(MOST_MANIFEST_BYTES).decode()
        content = json.loads(text)
        files = content["files"]
        if text != _as_manifest(content):
            return f"{MANIFEST} was changed after it was written"
        for name in required:
            if name not in files:
                return f"{MANIFEST} does not list {name}"
        for name, expected in files.items():
            path = folder / Path(name).name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes where {expected['bytes']} were written"
            if hashes and sha256(path) != expected["sha256"]:
                return f"{name} does not match its SHA-256"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IsADirectoryError):
        return f"{MANIFEST} cannot be read"
    return None


def download(url: str, target: Path, expected_sha256: str, otherwise: str) -> None:
    """Download `url` to the file `target`. Raises UserError where that fails or the SHA-256 differs.

    `otherwise` ends the message of that error: what the user can do without this download.
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


def folders_below(folder: Path, depth: int, is_wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a folder, or the folders at most `depth` levels below it, that are wanted; one inside another is omitted.

    Hidden folders and those that cannot be read are skipped.
    """
    try:
        if is_wanted(folder):
            yield folder
            return
        inside = [] if depth == 0 else [e.name for e in os.scandir(folder) if e.name[0] != "." and e.is_dir()]
    except OSError:
        return
    for name in sorted(inside):
        yield from folders_below(folder / name, depth - 1, is_wanted)


def total_bytes(folder: Path) -> int:
    """Return the size of all files below a folder. Files that vanish meanwhile count as empty; links are skipped."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total
