"""Runs the command line in this process as on Windows, as far as Linux can imitate it.

    python tests/on_windows.py train … -- sample … -- …

Modules and functions that Windows lacks are missing, those that only Windows has are imitated, and as there no file
that is open or mapped can be deleted, renamed or replaced. PyTorch is imported before, because it would notice.
"""

import ctypes
import errno
import fcntl
import importlib
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

IMPORTED_BEFORE = (
    "concurrent.futures.process", "cyclopts", "multiprocessing.spawn", "rich.console", "rich.progress",
    "safetensors.torch", "tempfile", "tiktoken", "torch.utils.checkpoint",
)  # fmt: skip
"""Modules that find out at their import which system they are on."""
HIDDEN_MODULES = ("fcntl", "resource", "termios", "tty", "pty", "readline", "syslog")
HIDDEN_OF_OS = (
    "pwrite", "pread", "chown", "sysconf", "sched_getaffinity", "getpriority", "setpriority", "set_blocking", "fork",
    "getuid", "geteuid", "getpgid", "killpg", "setsid", "fchmod", "mkfifo", "statvfs",
)  # fmt: skip
HIDDEN_OF_SIGNAL = ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGALRM", "SIGUSR1", "pthread_sigmask")
MEMORY = 3 * 10**9


def locking(fd: int, mode: int, size: int) -> None:
    assert (mode, size) == (2, 1), "LK_NBLCK of one byte"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def global_memory_status(status: Any) -> int:
    status._obj.available = MEMORY
    return 1


def process_memory_info(process: Any, counters: Any, size: int) -> int:
    counters._obj.peak = MEMORY // 3
    return 1


def is_in_use(path: Any) -> bool:
    """Whether this process has a file open or mapped that is this one, or below this folder."""
    target = Path(os.path.realpath(path))
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            opened.append(os.readlink(link))  # noqa: PTH115
        except OSError:
            continue
    mapped = [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    return any(Path(name).is_relative_to(target) for name in (*opened, *mapped) if name.startswith("/"))


def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*paths: Any, **named: Any) -> Any:
        if any(is_in_use(path) for path in paths):
            raise PermissionError(errno.EACCES, "the file is used by a process", os.fspath(paths[0]))
        return function(*paths, **named)

    return call


def imitate() -> None:
    open_file, fsync, get_flags, writable = os.open, os.fsync, fcntl.fcntl, (os.O_WRONLY, os.O_RDWR)
    space = shutil.disk_usage("/")

    def open_on_windows(path: Any, flags: int, *others: Any, **named: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return open_file(path, flags & ~windows.O_BINARY, *others, **named)

    def fsync_on_windows(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) or get_flags(fd, fcntl.F_GETFL) & os.O_ACCMODE not in writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        fsync(fd)

    for name in HIDDEN_MODULES:
        sys.modules[name] = None  # pyrefly: ignore[unsupported-operation]
    for name in HIDDEN_OF_OS:
        delattr(os, name)
    for name in HIDDEN_OF_SIGNAL:
        delattr(signal, name)
    windows: Any = os
    windows.O_BINARY = 0x8000
    windows.open, windows.fsync = open_on_windows, fsync_on_windows
    for name in ("unlink", "remove", "rmdir", "rename", "replace"):
        setattr(os, name, refusing(getattr(os, name)))
    anything: Any = shutil
    anything._use_fd_functions = False
    anything.disk_usage = lambda path: space
    vars(signal)["SIGBREAK"] = signal.Signals(signal.SIGQUIT)
    msvcrt: Any = ModuleType("msvcrt")
    msvcrt.locking, msvcrt.LK_NBLCK = locking, 2
    sys.modules["msvcrt"] = msvcrt
    kernel = SimpleNamespace(GlobalMemoryStatusEx=global_memory_status, K32GetProcessMemoryInfo=process_memory_info)
    vars(ctypes)["windll"] = SimpleNamespace(kernel32=kernel)
    sys.platform = "win32"


def main(commands: list[list[str]]) -> None:
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    imitate()
    import torch

    from gpt2 import cli, device, files, system

    for command in commands:
        try:
            cli.main(command)
        except SystemExit as end:
            if end.code:
                raise
    assert device.peak_memory(torch.device("cpu")) == MEMORY // 3
    assert system.free_memory() == MEMORY
    with files.locked(Path("lock")) as first, files.locked(Path("lock")) as second:
        assert (first, second) == (True, False)
    print("done")


if __name__ == "__main__":
    words = sys.argv[1:]
    split: list[list[str]] = [[]]
    for word in words:
        split.append([]) if word == "--" else split[-1].append(word)
    main(split)
