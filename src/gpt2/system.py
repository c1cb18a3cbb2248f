"""What differs between operating systems: locks, flushing, writing at an offset, signals and the memory in use.

Windows has other calls than Linux and macOS. They are tested only in imitation, so README recommends WSL 2 there.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    HANGUP = None
else:
    import fcntl
    import resource

    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    HANGUP = signal.SIGHUP


def lock(fd: int) -> None:
    """Lock an open file until it is closed.

    Raises BlockingIOError where another process holds the lock, and OSError where the file system has no locks.
    """
    if sys.platform == "win32":
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from None
    else:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def open_to_flush(path: Path) -> int | None:
    """Open a file or folder for `os.fsync`, and return its descriptor; None for a folder that needs no flush.

    Windows flushes only files that are open for writing, and has no such call for folders. Raises OSError.
    """
    if sys.platform == "win32":
        return None if path.is_dir() else os.open(path, os.O_RDWR | os.O_BINARY)
    return os.open(path, os.O_RDONLY)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write bytes at an offset of an open file, and return how many were written. Raises OSError."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)
    return os.pwrite(fd, data, offset)


def copy_owner(about: os.stat_result, path: Path) -> None:
    """Give a file the owner that `about` describes. Raises PermissionError where that is not allowed."""
    if sys.platform != "win32":
        os.chown(path, about.st_uid, about.st_gid)


def zeros(n_bytes: int) -> mmap.mmap:
    """Return zeros that begin at a page, and of which the system provides each page when it is first used.

    Linux would otherwise provide 2 MiB at a time, as it does for NumPy's arrays. Raises MemoryError.
    """
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, n_bytes)
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{error.strerror}: {n_bytes / 1e9:,.1f} GB") from None
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # this system has no large pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def peak_memory() -> int:
    """Return the largest number of bytes of memory that this process has used."""
    if sys.platform == "win32":
        counters = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
        ctypes.windll.kernel32.K32GetProcessMemoryInfo(ctypes.c_void_p(-1), ctypes.byref(counters), counters.size)
        return counters.peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def allow_open_files(count: int) -> int:
    """Let this process have `count` files open, or as many as the system allows; return how many it may have.

    Windows has no such limit.
    """
    if sys.platform == "win32":
        return count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= count:
        return count
    wanted = count if hard == unlimited else min(count, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has one more limit, that of its kernel
        return soft
    return wanted


def free_memory() -> int:
    """Return the number of bytes that can be allocated on this machine; on macOS, the size of its memory."""
    if sys.platform == "win32":
        status = _MachineMemory(size=ctypes.sizeof(_MachineMemory))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status.available
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class _MachineMemory(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )
