"""Deletes checkpoints of a run by a rule."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.files import manifest_problem, total_bytes
from gpt2.formats.run_folder import CONTENT, best_step, damaged_run, folder_of, read_description, saved_steps
from gpt2.reporting.trainer import LOCK
from gpt2.training.ownership import checkpoints_of_run
from gpt2.training.session import trainer_lock


@dataclass(frozen=True)
class Pruning:
    """Says which checkpoints of a run a rule keeps, and which it deletes."""

    run: Path
    kept: dict[int, str]
    """Steps of the checkpoints that stay, newest first, each with the reason."""
    removed: dict[Path, int]
    """Folders of the checkpoints that go, each with its size in bytes."""

    @property
    def bytes(self) -> int:
        """Return the number of bytes that are freed."""
        return sum(self.removed.values())

    def figures(self) -> dict[str, Any]:
        """Return the decision as a JSON object."""
        removed = {folder.name: size for folder, size in self.removed.items()}
        kept = [{"step": step, "because": reason} for step, reason in self.kept.items()]
        return {"run": str(self.run), "kept": kept, "removed": removed, "bytes": self.bytes}


@contextmanager
def idle(run: Path, writes: bool) -> Iterator[None]:
    """Keep trainers out of a run's folder meanwhile. Raises UserError where one is at work there, or there is no run.

    writes: whether the folder is changed; otherwise not even the file of the lock is made.
    """
    if not (run / "checkpoints").is_dir():
        raise UserError(f"{run} holds no checkpoints; name the out_dir of a run")
    with ExitStack() as stack:
        is_free = True
        if writes or (run / LOCK).exists():
            try:
                is_free = stack.enter_context(trainer_lock(run))
            except UserError:  # no right to write there
                if writes:
                    raise
        if not is_free:
            raise UserError(f"{run} is training now; prune it when it has ended, or train with --keep_checkpoints=N")
        yield


def choose(run: Path, keep_last: int = 1, keep_every: int = 0) -> Pruning:
    """Return which checkpoints of a run stay: the newest ones, every multiple of a step, and those that are needed.

    keep_last: number of newest checkpoints that stay. keep_every: the steps that are its multiples stay; 0 for none.
    The best one, the newest and the newest intact one always stay. Anything that is not a checkpoint of this program
    is neither kept nor removed. Raises UserError where no checkpoint is intact.
    """
    found = {path.name: path for path in checkpoints_of_run(run)}
    steps = [step for step in saved_steps(run) if folder_of(run, step).name in found]
    reasons: dict[int, str] = {}
    for step in steps[:keep_last]:
        reasons[step] = f"of the last {keep_last}"
    if keep_every:
        reasons |= {step: f"multiple of {keep_every}" for step in steps if step % keep_every == 0}
    reasons |= _needed(run, steps)
    kept = {step: reasons[step] for step in steps if step in reasons}
    names = {folder_of(run, step).name for step in kept}
    gone = {path: total_bytes(path) for name, path in sorted(found.items()) if name not in names}
    return Pruning(run, kept, gone)


def carry_out(chosen: Pruning) -> None:
    """Delete the checkpoints that a rule removes. Raises UserError if one cannot be deleted."""
    for folder in chosen.removed:
        try:
            checkpoint.remove(folder)
        except OSError as error:
            raise UserError(f"cannot delete {folder} ({error.strerror}); make {folder.parent} writable") from None


def _needed(run: Path, steps: list[int]) -> dict[int, str]:
    """Return the steps whose checkpoints sampling and resuming need, each with the reason. Raises UserError."""
    if not steps:
        return {}
    problems: dict[Path, str] = {}
    for intact in steps:
        if (problem := manifest_problem(folder_of(run, intact), CONTENT)) is None:
            break
        problems[folder_of(run, intact)] = problem
    else:
        raise UserError(f"nothing is deleted, because {damaged_run(run, problems)}")
    state: dict[str, Any] = {}
    with suppress(OSError, UserError):
        state = read_description(folder_of(run, intact))
    best = best_step(run)
    best = state.get("best_step") if best is None else best
    reasons: dict[int, list[str]] = {}
    for step, reason in (
        (best, "the best"),
        (steps[0], "the latest"),
        (intact if intact != steps[0] else None, "the latest that is intact"),
        (state.get("return_to"), "to return to after a loss spike"),
    ):
        if step is not None:
            reasons.setdefault(step, []).append(reason)
    return {step: ", ".join(found) for step, found in reasons.items()}
