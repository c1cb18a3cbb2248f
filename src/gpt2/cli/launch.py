"""Several processes on this machine that share the work, started by PyTorch's launcher."""

import logging
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2.errors import EXIT_BAD_INPUT, EXIT_STOPPED, UserError
from gpt2.runlog.console import note

if TYPE_CHECKING:  # torch is not imported to answer --help
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

LONGEST_NUMBER = 9
"""Maximum number of digits of a number of processes."""
PROCESS_BYTES = 200_000_000
"""Memory that a process takes at least, in bytes: that of PyTorch."""
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
"""Signals that the launcher passes on to the processes."""
SAVING_SECONDS = 3600
"""Seconds that the processes have after a signal to end their step and to save. PyTorch kills them after 30."""
_command_line: list[str] = []


def launch(nproc: str, arguments: Sequence[str], threads: int | None = None, max_restarts: int = 0) -> int:
    """Run this command line in `nproc` processes under torchrun, and return their exit status.

    `nproc` is a number, or `auto` for one process per GPU. `threads` is the number of threads of each process on a
    CPU; None divides the cores among the processes. After the death of one process, all are started again, at most
    `max_restarts` times. Raises UserError for another `nproc`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `_status` reports failures
    count = processes(nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", SIGNALS)  # torchrun's options, which older versions do not have
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING_SECONDS))
    options = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={max_restarts}", "-m", "gpt2"]
    try:
        run(parse_args([*options, *without_nproc(arguments)]))
    except ChildFailedError as error:
        return _status(error)
    except SignalException as error:
        if isinstance(error.__context__, SignalException):  # a second signal, which ends the processes at once
            return 128 + error.sigval
        return EXIT_STOPPED  # the processes got the signal too, and have saved
    return 0


def _status(error: "ChildFailedError") -> int:
    """Return the exit status for failed processes, and report a failure that they have not reported themselves."""
    codes = {failure.exitcode for failure in error.failures.values()}
    for expected in (EXIT_BAD_INPUT, EXIT_STOPPED):
        if expected in codes:
            return expected
    rank, first = error.get_first_failure()
    how = (
        f"was killed by {signal.Signals(-first.exitcode).name}"
        if first.exitcode < 0
        else f"exited with status {first.exitcode}"
    )
    note(
        f"gpt2: process {rank} (pid {first.pid}) {how}, so the others were ended too; continue from the last "
        "checkpoint with --init_from=resume"
    )
    return 1


def processes(nproc: str) -> int:
    """Return the number of processes that `--nproc` requests. Raises UserError."""
    import torch

    if nproc == "auto":
        return max(1, torch.cuda.device_count())
    if not (nproc.isdecimal() and len(nproc) <= LONGEST_NUMBER and int(nproc) >= 1):
        raise UserError(f"nproc is {nproc!r}; give a number of processes, or auto for one per GPU")
    from gpt2.device import free_memory

    needed, free = int(nproc) * PROCESS_BYTES, free_memory(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{nproc} processes take at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; lower "
            "--nproc"
        )
    return int(nproc)


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """Return the command line of a single process: `arguments` without the options of the launcher."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        name, _, value = argument.replace("_", "-").partition("=")
        if name not in ("--nproc", "--max-restarts"):
            kept.append(argument)
        elif not value:
            next(rest, None)
    return kept


def is_launched() -> bool:
    """Return whether this process is one of several that the launcher started."""
    return "RANK" in os.environ


def is_restarted() -> bool:
    """Return whether the launcher started this process again after the death of another."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_main_process() -> bool:
    """Return whether this process is the one that prints for all processes."""
    return os.environ.get("RANK", "0") == "0"


def command_line() -> list[str]:
    """Return the command line that this process runs, without the name of the program."""
    return _command_line


def set_command_line(words: Sequence[str]) -> None:
    """Keep the command line that this process runs, which `--nproc` starts in every process."""
    _command_line[:] = words
