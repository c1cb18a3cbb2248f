"""Several processes on this machine that train together, by PyTorch's own launcher."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.runlog.console import note

if TYPE_CHECKING:  # torch is not imported to answer --help
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

EXIT_BAD_INPUT, EXIT_STOPPED = 2, 75


def launch(nproc: str, arguments: Sequence[str], threads: int | None, max_restarts: int) -> int:
    """Run this command line in `nproc` processes under torchrun; returns the status they ended with.

    nproc: a number, or `auto` for one a GPU. threads: of each process on a CPU; None shares the cores out. Where one
    dies, all are started again up to `max_restarts` times. Raises UserError for another `nproc`.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would say, _status says
    count = processes(nproc)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or max(1, (os.cpu_count() or 1) // count)))
    options = ["--standalone", f"--nproc-per-node={count}", f"--max-restarts={max_restarts}", "-m", "gpt2"]
    try:
        run(parse_args([*options, *without_nproc(arguments)]))
    except ChildFailedError as error:
        return _status(error)
    except SignalException:
        return EXIT_STOPPED  # the processes got the signal too, and have saved
    return 0


def _status(error: "ChildFailedError") -> int:
    """What the failed processes are to say together."""
    codes = {failure.exitcode for failure in error.failures.values()}
    for expected in (EXIT_BAD_INPUT, EXIT_STOPPED):
        if expected in codes:
            return expected
    rank, first = error.get_first_failure()
    how = (
        f"was killed by {signal.Signals(-first.exitcode).name}"
        if first.exitcode < 0
        else f"ended with {first.exitcode}"
    )
    note(
        f"gpt2: process {rank} (pid {first.pid}) {how}, so the others were ended too; go on from the last checkpoint "
        "with --init_from=resume"
    )
    return 1


def processes(nproc: str) -> int:
    """How many processes `--nproc` asks for. Raises UserError."""
    if nproc == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    if not nproc.isdecimal() or int(nproc) < 1:
        raise UserError(f"nproc is {nproc!r}; give a number of processes, or auto for one a GPU")
    return int(nproc)


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """The command line of one of the processes."""
    left, rest = [], iter(arguments)
    for argument in rest:
        name, _, value = argument.replace("_", "-").partition("=")
        if name not in ("--nproc", "--max-restarts"):
            left.append(argument)
        elif not value:
            next(rest, None)
    return left


def is_launched() -> bool:
    """Whether this process is one of several already."""
    return "RANK" in os.environ


def is_restarted() -> bool:
    """Whether the launcher starts this process again after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def speaks() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def command_line() -> list[str]:
    """What the user typed after `gpt2`."""
    return sys.argv[1:]
