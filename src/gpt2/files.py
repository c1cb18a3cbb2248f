"""Files that are whole or absent: atomic publishing, manifests of hashes, verified downloads."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2.errors import SPACE_ERRORS, UserError, WriteError
from gpt2.streams import is_stream, pour

MANIFEST = "manifest.json"
DISK_ERRORS = (*SPACE_ERRORS, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of writing that come without the name of a file."""


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
    """Remove a file, a folder with all that is in it, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_of(target: Path) -> Path:
    """Where `publish` has a new file or folder made. The name is reserved for that."""
    return target.parent / f".{target.name}.tmp"


def _temporary_inside(folder: Path) -> Path:
    """Where `publish` has the content of a folder made that is there already."""
    return folder / f".{folder.name}.tmp"


def free_bytes(path: Path) -> int:
    """What is free on the disk of a path, or of where it would be."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def check_free(target: Path, folder: bool = False) -> None:
    """Raise UserError where something is in the place of a file or folder that is to be made.

    A device, a pipe or an open descriptor takes any file, and an empty folder is as good as none.
    """
    if is_stream(target):
        if folder:
            raise UserError(f"{target} is not a folder, and this output is one; choose another place")
    elif target.exists() and not (folder and target.is_dir() and _is_empty(target)):
        raise UserError(f"{target} already exists; choose another place, or delete it")


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a killed `publish` left."""
    place = Path(os.path.realpath(folder))
    return all(path == _temporary_inside(place) for path in place.iterdir())


@contextmanager
def publish(target: Path, folder: bool = False, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file that is made there becomes `target` whole.

    With `folder` the temporary path is an empty folder to fill. Contents are flushed to disk before the rename, so
    that a crash at any moment leaves what was there before or the complete new version. (The files of a folder that
    existed, and was empty, come into it one after the other.)

    A file replaces a file and keeps its mode. A symbolic link stays, and what it points to is replaced. The bytes of
    a file are copied into a target that is a device, a pipe, a socket or an open descriptor.

    Raises WriteError where the target cannot be written, and then leaves nothing behind. `needed` is how many bytes
    will be written at least, for its message.
    """
    if is_stream(target):
        check_free(target, folder)
        with tempfile.TemporaryDirectory() as scratch:
            temporary = Path(scratch) / "content"
            with _reported(temporary, temporary, temporary, needed):
                yield temporary
            pour(temporary, target)
        return
    place = Path(os.path.realpath(target))
    temporary = _temporary_inside(place) if folder and place.is_dir() else temporary_of(place)
    with _reported(target, place, temporary, needed):
        _make_way(place, temporary, folder)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                temporary.mkdir()
            yield temporary
            _put(temporary, place)
        finally:
            _remove(temporary)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn any OSError into a WriteError, around statements that write `target` in its place and read nothing."""
    try:
        yield
    except OSError as error:
        raise _write_error(target, error) from error


def _write_error(target: Path, error: OSError, needed: int | None = None) -> WriteError:
    return WriteError(target, error, needed, free_bytes(target) if error.errno in SPACE_ERRORS else None)


@contextmanager
def _reported(target: Path, place: Path, temporary: Path, needed: int | None) -> Iterator[None]:
    """Turn an OSError that concerns the target into a WriteError; one of another file passes."""
    try:
        yield
    except OSError as error:
        if not _concerns(error, place, temporary):
            raise
        raise _write_error(target, error, needed) from error


def _concerns(error: OSError, place: Path, temporary: Path) -> bool:
    """Whether it was raised in writing: such errors name a path on the way, or none, as write(2) does."""
    if error.filename is None:
        return error.errno in DISK_ERRORS
    path = Path(os.fsdecode(error.filename))
    return place.is_relative_to(path) or path.is_relative_to(temporary)


def _make_way(place: Path, temporary: Path, folder: bool) -> None:
    """Remove what a killed process left, and nothing else. Raises where the file or folder cannot be made."""
    if place.is_symlink():  # though all links were followed
        raise _os_error(errno.ELOOP, place)
    if place.exists() and place.is_dir() != folder:
        raise _os_error(errno.ENOTDIR if folder else errno.EISDIR, place)
    if folder and place.is_dir() and not _is_empty(place):
        raise _os_error(errno.ENOTEMPTY, place)
    if not folder and temporary.is_dir() and not temporary.is_symlink():
        raise UserError(f"the folder {temporary} is in the way of {place.name}; move it, or delete it")
    _remove(temporary)


def _os_error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _put(temporary: Path, place: Path) -> None:
    """Flush what was made to the disk, and move it into its place."""
    for path in sorted(temporary.rglob("*")):
        _fsync(path)
    _fsync(temporary)
    if temporary.parent == place:
        for path in sorted(temporary.iterdir()):
            path.replace(place / path.name)
        _fsync(place)
        return
    if place.exists() and temporary.is_file():
        _take_over(place.stat(), temporary)
    temporary.replace(place)
    _fsync(place.parent)


def _take_over(about: os.stat_result, path: Path) -> None:
    """Give a file the owner, as far as that is allowed, and the mode of the one that it replaces."""
    with suppress(PermissionError):
        os.chown(path, about.st_uid, about.st_gid)
    path.chmod(stat.S_IMODE(about.st_mode))


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


def write_bytes(target: Path, content: bytes) -> None:
    """Publish `content` as the whole file `target`. Raises WriteError."""
    with publish(target, needed=len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(target: Path, text: str) -> None:
    """Publish `text`, in UTF-8, as the whole file `target`. Raises WriteError."""
    write_bytes(target, text.encode())


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
