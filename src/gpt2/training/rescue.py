"""What becomes of a run that an exception ends: its last whole step is saved, and one line says so."""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpt2 import checkpoint, device
from gpt2.checkpoint import Snapshot
from gpt2.errors import TrainingFailed, UserError, first_line
from gpt2.training.saver import Saver
from gpt2.training.setup import Run

OUT_OF_MEMORY = (
    "the memory does not hold the run; lower --batch_size and raise --gradient_accumulation_steps to keep the tokens "
    "per step, add --activation_checkpointing, or share the model between more processes with --zero_stage=1 or "
    "--parallel=fsdp"
)

RESERVED_DESCRIPTORS = 16
"""File descriptors kept for a last checkpoint, should the process run out of them."""


@contextmanager
def memory_may_not_do() -> Iterator[None]:
    """Say what helps where the device's memory is too small. Raises UserError."""
    try:
        yield
    except RuntimeError as error:
        if device.is_out_of_memory(error):
            raise UserError(OUT_OF_MEMORY) from error
        raise


@contextmanager
def reserved_descriptors() -> Iterator[list[int]]:
    """Hold some file descriptors, which `release` frees when they are needed."""
    reserve = [os.open(os.devnull, os.O_RDONLY) for _ in range(RESERVED_DESCRIPTORS)]
    try:
        yield reserve
    finally:
        release(reserve)


def release(reserve: list[int]) -> None:
    """Close all file descriptors of a list, and empty it."""
    while reserve:
        os.close(reserve.pop())


def as_user_error(error: BaseException, step: int) -> UserError:
    """The one line for an exception that ended a run after `step` updates: its own where it is a UserError."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and device.is_out_of_memory(error)):
        return UserError(OUT_OF_MEMORY)
    if isinstance(error, OSError):
        return UserError(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
    return TrainingFailed(
        f"training failed after step {step} with {type(error).__name__}: {first_line(error)} (the traceback is in "
        "log.jsonl)"
    )


def traceback_of(error: BaseException) -> str:
    """The traceback of an exception as Python prints it."""
    return "".join(traceback.format_exception(error))


def save_last_step(run: Run, saver: Saver, take: Callable[[], Snapshot], last_made: int) -> str:
    """Save the step a run is at, unless `last_made`, the last update that was not skipped, is saved already.

    Of several processes the main one saves, if it has everything: the others may be gone, and cannot help. Returns
    what there is to add to the line that ends the run.
    """
    problem = saver.settle()
    if problem is None and last_made <= (run.saved_step or 0):
        return ""
    shared = run.world.size > 1 and (run.config.parallel == "fsdp" or run.config.zero_stage > 0)
    if shared or not run.world.is_main:
        return ""
    step = run.state.step
    if not run.is_whole:
        return f"; it broke off update {step + 1} in the middle, so that nothing after the last checkpoint is saved"
    try:
        run.model.zero_grad(set_to_none=True)
        checkpoint.write(take())
    except Exception as error:
        return f"; step {step} could not be saved ({first_line(error)})"
    return f"; step {step} is saved: go on with gpt2 train --init_from=resume --out_dir={run.out_dir}"
