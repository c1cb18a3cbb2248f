"""Output paths that are not ordinary files: devices, pipes, sockets and descriptors that are already open."""

import os
import shutil
import socket
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from gpt2.errors import WriteError

STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
MAX_LINKS = 40
"""Largest number of symbolic links that are followed, as on Linux."""


def descriptor_of(path: Path) -> int | None:
    """Return the number of the open descriptor that a path such as `/dev/fd/3` names; None for other paths."""
    folders = {"/dev/fd", *(os.path.realpath(p) for p in ("/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"))}
    for _ in range(MAX_LINKS):
        resolved = Path(os.path.realpath(path.parent)) / path.name
        if str(resolved) in STANDARD:
            return STANDARD[str(resolved)]
        if str(resolved.parent) in folders and resolved.name.isdecimal() and len(resolved.name) < 10:
            return int(resolved.name)
        if not resolved.is_symlink():
            return None
        path = resolved.parent / resolved.readlink()
    return None


def is_stream(path: Path) -> bool:
    """Return whether a path is a device, pipe, socket or open descriptor, into which bytes are written directly."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def copy_into(content: Path, target: Path) -> None:
    """Copy the bytes of the file `content` into a stream.

    Raises WriteError where that fails, and BrokenPipeError where the reader has gone.
    """
    try:
        with content.open("rb") as source, _opened(target) as sink:
            shutil.copyfileobj(source, sink)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise WriteError(target, error) from error


def _opened(target: Path) -> BinaryIO:
    if (number := descriptor_of(target)) is not None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # so that earlier output comes first
        return os.fdopen(os.dup(number), "wb")
    if target.is_socket():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(target))
            return connection.makefile("wb")
    return os.fdopen(os.open(target, os.O_WRONLY), "wb")
