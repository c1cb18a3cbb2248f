"""Turns signals into requests to stop a run, on which all its processes agree."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2.distributed.world import World
from gpt2.errors import Log
from gpt2.system import HANGUP, STOP_SIGNALS

ASK_SECONDS = 0.5
"""Approximate number of seconds after which several processes ask each other again whether to stop."""


class Stopped(Exception):
    """Raised when the run must stop in the middle of work that a resumed run repeats."""


class Stop:
    """Holds the request to end the run: a signal to any process, or a failure that `must_stop` reports in one."""

    def __init__(self, world: World, must_stop: Callable[[], bool]) -> None:
        self.world, self.must_stop = world, must_stop
        self.signal: int | None = None
        self.seconds = 0.0
        """Seconds in which the processes waited for each other's answers."""
        self.is_agreed = False
        """Whether the processes have agreed to stop."""
        self.interval = self.remaining = 1
        """Number of steps from one question between steps to the next, and those that remain until the next."""
        self.asked_at = time.perf_counter()

    @property
    def is_asked(self) -> bool:
        """Return whether this process knows a reason to stop."""
        return self.signal is not None or self.must_stop()

    def asked_between_steps(self) -> bool:
        """Return whether the run must stop, once for each step. All processes must call it, or none.

        Several processes ask each other only every ASK_SECONDS or so: after a number of steps on which they agree,
        which follows from the slowest one's time and at most doubles.
        """
        if self.world.size == 1:
            return self.is_asked
        self.remaining -= 1
        if self.is_agreed or self.remaining > 0:
            return self.is_agreed
        began = time.perf_counter()
        answers = self.world.gather((self.is_asked, (began - self.asked_at) / self.interval))
        self.asked_at = time.perf_counter()
        self.seconds += self.asked_at - began
        self.is_agreed = any(is_asked for is_asked, _ in answers)
        fitting = int(ASK_SECONDS / max(seconds for _, seconds in answers))
        self.interval = self.remaining = max(1, min(fitting, 2 * self.interval))
        return self.is_agreed

    def check_all_processes(self) -> None:
        """Raise Stopped if the run must stop. This communicates: all processes must call it, or none."""
        began = time.perf_counter()
        self.is_agreed |= self.world.any(self.is_asked)
        self.seconds += time.perf_counter() - began
        if self.is_agreed:
            raise Stopped


@contextmanager
def stop_on_signals(stop: Stop, log: Log) -> Iterator[None]:
    """Turn the first stop signal into a request to `stop`, and let a second one end the process at once.

    They are Ctrl-C, the request of a scheduler (SIGTERM, or SIGUSR1 or SIGUSR2, which SLURM can send before a time
    limit), and a closed terminal (SIGHUP, or SIGBREAK on Windows).
    A thread confirms the first signal with a line to `log`, because Python runs signal handlers only between two
    operations of the main thread, and an operation of PyTorch can take seconds. SIGHUP stays ignored if it was
    ignored, as nohup requires. Outside the main thread, where Python allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or number

    handled = [n for n in STOP_SIGNALS if n != HANGUP or signal.getsignal(n) != signal.SIG_IGN]
    arrivals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    listener = threading.Thread(target=_confirm, args=(arrivals, log), daemon=True)
    listener.start()
    before = {number: signal.signal(number, request) for number in handled}
    previous = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        wakeup.close()
        listener.join()
        arrivals.close()


def _confirm(arrivals: socket.socket, log: Log) -> None:
    """Confirm the first signal whose number comes through the socket `arrivals`; end the process at the second.

    SIGHUP never counts as the second one: a terminal sends it twice when it closes, and systemd sends it after each
    SIGTERM.
    """
    confirmed, requests = False, 0
    while number := arrivals.recv(1):
        if number[0] not in STOP_SIGNALS:
            continue
        requests += number[0] != HANGUP
        if requests > 1:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # show the cursor again, which the progress bar hides
            os._exit(128 + number[0])
        if not confirmed:
            name = signal.Signals(number[0]).name
            log(f"{name}: stopping after the current step and saving; another Ctrl-C or SIGTERM ends the run at once")
            confirmed = True
