"""Starts the command, and lets Ctrl-C end it quietly from the first import on."""

import os
import signal
from typing import NoReturn

from gpt2.errors import EXIT_INTERRUPTED


def main() -> NoReturn:
    """Run the command line and exit."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or the parent has it ignored
    if is_default:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
    from gpt2.cli import main as run

    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
