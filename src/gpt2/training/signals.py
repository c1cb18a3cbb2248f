"""Signals that ask a run to stop, and how all its processes agree on it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.distributed.world import World
from gpt2.errors import Log

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that stop a run: Ctrl-C, a scheduler's request, a closed terminal."""


class Stopped(Exception):
    """Raised where the run was asked to stop in the middle of something that a resumed run does again."""


class Stop:
    """A request to end the run: a signal to any of its processes, or a fault that `must_stop` of one reports."""

    def __init__(self, world: World, must_stop: Callable[[], bool]) -> None:
        self.world, self.must_stop = world, must_stop
        self.signal: int | None = None
        self.seconds = 0.0
        """Seconds spent in `asked_in_any_process`, where the processes wait for each other."""

    def asked_in_any_process(self) -> bool:
        """Ask all processes whether the run must stop. This communicates: all of them must call it, or none."""
        began = time.perf_counter()
        answer = self.world.any(self.signal is not None or self.must_stop())
        self.seconds += time.perf_counter() - began
        return answer

    def check_all_processes(self) -> None:
        """Raise Stopped where the run must stop. This communicates: all processes must call it, or none."""
        if self.asked_in_any_process():
            raise Stopped


@contextmanager
def stop_on_signals(stop: Stop, log: Log) -> Iterator[None]:
    """Turn the first of SIGNALS into a request to `stop`, and let a second one end the process at once.

    A thread confirms the first with a line, since Python runs signal handlers only between two operations of the main
    thread, and one of PyTorch's can take seconds. SIGHUP stays ignored where it was ignored, as nohup needs it.
    Outside the main thread, where Python allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or number

    handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    arrivals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    listener = threading.Thread(target=_confirm, args=(arrivals, log), daemon=True)
    listener.start()
    before = {number: signal.signal(number, request) for number in handled}
    previous = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wakeup)
        listener.join()
        os.close(arrivals)


def _confirm(arrivals: int, log: Log) -> None:
    """Confirm the first signal whose number comes through the pipe `arrivals`; end the process at the second.

    SIGHUP never counts as the second one: a terminal that closes sends it twice, and systemd after each SIGTERM.
    """
    confirmed, requests = False, 0
    while number := os.read(arrivals, 1):
        if number[0] not in SIGNALS:
            continue
        requests += number[0] != signal.SIGHUP
        if requests > 1:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # show the cursor again, which the progress bar hides
            os._exit(128 + number[0])
        if not confirmed:
            name = signal.Signals(number[0]).name
            log(f"{name}: stopping after the current step and saving; another Ctrl-C or SIGTERM ends the run at once")
            confirmed = True
