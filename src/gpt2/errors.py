"""Failures that end a command with one line instead of a traceback."""


class UserError(Exception):
    """Bad input, described in one line: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with `status`. A fault of this program is an assert or
    an ordinary exception instead.
    """

    status = 2


class ToldElsewhere(UserError):
    """A UserError that another process prints."""


class TrainingFailed(UserError):
    """An unexpected exception ended a training run; the message says what was saved. The exception is its cause."""

    status = 1


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
