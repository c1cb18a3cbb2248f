"""Targets that are no ordinary files: devices, pipes, sockets and descriptors that are already open."""

import os
import shutil
import socket
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from gpt2.errors import WriteError

STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
MOST_LINKS = 40
"""Symbolic links that are followed, as on Linux."""


def descriptor_of(path: Path) -> int | None:
    """The number of the open descriptor that a path names, as `/dev/stdout` and `/dev/fd/3` do; None for others."""
    folders = {"/dev/fd", *(os.path.realpath(p) for p in ("/dev/fd", "/proc/self/fd", "/proc/thread-self/fd"))}
    for _ in range(MOST_LINKS):
        here = Path(os.path.realpath(path.parent)) / path.name
        if str(here) in STANDARD:
            return STANDARD[str(here)]
        if str(here.parent) in folders and here.name.isdecimal():
            return int(here.name)
        if not here.is_symlink():
            return None
        path = here.parent / here.readlink()
    return None


def is_stream(path: Path) -> bool:
    """Whether a path names a device, pipe, socket or open descriptor: bytes go into it, and nothing replaces it."""
    if descriptor_of(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def pour(content: Path, target: Path) -> None:
    """Copy the bytes of the file `content` into a stream.

    Raises WriteError where that fails, and BrokenPipeError where nobody reads them.
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
        for printed in (sys.stdout, sys.stderr):
            if printed is not None:
                printed.flush()  # before what is written past it
        return os.fdopen(os.dup(number), "wb")
    if target.is_socket():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(target))
            return connection.makefile("wb")
    return os.fdopen(os.open(target, os.O_WRONLY), "wb")
