"""The one kind of failure that is the user's to mend."""


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with status 2. Everything that is our own
    fault is an assert or an ordinary exception instead.
    """
