"""Saves the last complete step of a run that an exception ends, and describes the exception in one line."""

import errno
import traceback
from collections.abc import Callable

from torch.distributed import DistNetworkError

from gpt2 import checkpoint, device
from gpt2.checkpoint import Checkpoint
from gpt2.distributed.world import World
from gpt2.errors import TrainingFailed, UserError, first_line
from gpt2.training.run import Run
from gpt2.training.saver import Saver

CONNECTION_LOST = ("/gloo/transport/", "ncclRemoteError")
"""Parts of the messages of gloo and NCCL about a process on the other end of a connection."""


class SkippedSteps(UserError):
    """Raised when too many steps in a row were skipped. Its message says how the run can go on."""


class ConnectionLost(UserError):
    """Raised when another process cannot be reached any more. If that one knows why it ends, it reports it itself."""

    status = 1


def as_user_error(error: BaseException, step: int, world: World) -> UserError:
    """Return the UserError to raise for an exception after `step` optimizer steps: itself, if it is one."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and device.is_out_of_memory(error)):
        return UserError(device.OUT_OF_MEMORY)
    if isinstance(error, OSError):
        return UserError(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
    is_lost = isinstance(error, RuntimeError) and any(part in str(error) for part in CONNECTION_LOST)
    if is_lost or isinstance(error, DistNetworkError):  # the latter to the launcher, or to the main process
        return ConnectionLost(
            f"process {world.rank} lost the connection to another process, or to the launcher, after step {step}; "
            "that one has ended, or its machine or network has failed"
        )
    where = "in log.jsonl" if world.is_main else f"above, of process {world.rank}"
    return TrainingFailed(
        f"training failed after step {step} with {type(error).__name__}: {first_line(error)} (the traceback is "
        f"{where})"
    )


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as Python prints it."""
    return "".join(traceback.format_exception(error))


def save_last_step(run: Run, saver: Saver, take: Callable[[], Checkpoint], last_made: int, problem: UserError) -> str:
    """Save the current step, unless `last_made`, the last step that was not skipped, is saved already.

    Only the main process saves, and only if it has the complete state, because other processes may have ended.
    problem: what ended the run. Returns the text to append to its line, which repeats nothing that it says.
    """
    if saver.settle() is None and last_made <= (run.saved_step or 0):
        return ""
    shared = run.world.size > 1 and (run.config.parallel != "ddp" or run.config.zero_stage > 0)
    if shared or not run.world.is_main:
        return ""
    step = run.state.step
    if not run.is_consistent:
        return f"; it happened in the middle of step {step + 1}, so nothing after the last checkpoint is saved"
    try:
        run.model.zero_grad(set_to_none=True)
        checkpoint.write(take())
    except Exception as error:
        if is_same_reason(error, problem):
            return "; nothing after the last checkpoint is saved"
        return f"; step {step} could not be saved ({first_line(error)})"
    advice = "" if isinstance(problem, SkippedSteps) else f": go on with {run.resume_command}"
    return f"; step {step} is saved{advice}"


def is_same_reason(error: Exception, other: Exception) -> bool:
    """Return whether two errors both come from a full disk, or have the same text."""
    causes = error.__cause__, other.__cause__
    is_full = [isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in causes]
    return all(is_full) or str(error) == str(other)
