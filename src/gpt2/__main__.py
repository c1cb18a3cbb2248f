"""Starts the command, and lets Ctrl-C end it quietly from the first import on."""

import os
import signal
from typing import NoReturn

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of a shell."""


def main() -> NoReturn:
    """Run the command line and exit."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # the parent may have asked to ignore Ctrl-C
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    from gpt2.cli import main as run

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
