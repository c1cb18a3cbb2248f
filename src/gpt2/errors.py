"""Failures that end a command with one line instead of a traceback."""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

EXIT_BAD_INPUT = 2
EXIT_STOPPED = 75
"""Exit status of a run that a signal ended; it is saved and can be resumed (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell."""
EXIT_BROKEN_PIPE = 141

Log = Callable[[str], None]
"""A function that receives lines for the user."""
SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where there is no room for more bytes."""


class UserError(Exception):
    """Bad input, described in one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with `status`. A fault of this program is an assert or
    an ordinary exception instead.
    """

    status = EXIT_BAD_INPUT


class ReportedElsewhere(UserError):
    """A UserError that another process prints."""


class TrainingFailed(UserError):
    """An unexpected exception ended a training run; the message says what was saved. The exception is its cause."""

    status = 1


class MachineWarning(UserWarning):
    """This machine or its file system cannot do something; the work goes on without it, and the text says how."""


class WriteError(UserError, OSError):
    """A file or folder that cannot be written, with the system's reason and what to do about it.

    Has the `errno` and `strerror` of the error it is made of, and the target as its `filename`. `needed` is how many
    bytes the target takes at least, and `free` how many there are on its disk.
    """

    def __init__(self, target: "Path", error: OSError, needed: int | None = None, free: int | None = None) -> None:
        reason = error.strerror or first_line(error)
        super().__init__(f"cannot write {target} ({reason}){_remedy(error.errno, needed, free)}")
        self.errno, self.strerror, self.filename = error.errno, reason, str(target)

    def __str__(self) -> str:
        return self.args[0]  # not as OSError words it


def require(condition: bool, message: str) -> None:
    """Raise UserError with the `message` unless the condition holds."""
    if not condition:
        raise UserError(message)


def _remedy(number: int | None, needed: int | None, free: int | None) -> str:
    if free is not None:
        wanted = "" if needed is None else f"it needs at least {needed:,} bytes and "
        unit = "are" if wanted else "bytes are"
        return f": {wanted}{free:,} {unit} free there; make room, or choose another place"
    if number == errno.EFBIG:
        return "; raise the limit that `ulimit -f` shows, or choose another place"
    return "; choose another place"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
