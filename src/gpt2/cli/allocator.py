"""How this process gets its memory from the system."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Options of mallopt(3)."""


def keep_freed_memory() -> None:
    """Make glibc keep the memory that this process frees, for its next allocation; do nothing without glibc.

    Every optimizer step frees large tensors and allocates them again. Getting fresh pages from the system each time
    would take a tenth to a fifth of the step's time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)
