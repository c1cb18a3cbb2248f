"""The one kind of failure that is the user's to mend."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with status 2. Everything that is our own
    fault is an assert or an ordinary exception instead.
    """


class ToldElsewhere(UserError):
    """A UserError that another process prints."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception of somebody else's says, or its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
