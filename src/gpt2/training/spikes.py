"""Detects loss spikes. After one, the run returns to its last checkpoint and skips the batches that led to it.

Chowdhery et al. 2022 (PaLM, section 5.1) did this by hand.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.run_folder import read_description, saved_steps
from gpt2.training.session import Session

MIN_LOSSES, MAX_LOSSES = 32, 128
"""Smallest and largest number of earlier losses with which a new one is compared."""
MAX_RETURNS = 3
"""Largest number of returns to one checkpoint. After them, other batches do not help."""


def is_spike(recent: Sequence[float], loss: float, deviations: float) -> bool:
    """Return whether a loss is more than `deviations` standard deviations above the mean of the `recent` ones."""
    if len(recent) < MIN_LOSSES:
        return False
    return loss > statistics.fmean(recent) + deviations * statistics.pstdev(recent)


class Diverged(UserError):
    """Raised when training diverged. The current weights are not saved, because the last checkpoint is better."""


class SpikeWatch:
    """Compares every loss of a run with those before it. All processes see the same losses and act alike."""

    def __init__(self, session: Session) -> None:
        self.run, self.log, self.console = session.run, session.log, session.console

    def is_spike(self, loss: float) -> bool:
        """Return whether this loss is a spike; if not, the next losses are compared with it too, unless it is 0."""
        if loss == 0:  # no token of the step had one, as loss_after makes possible
            return False
        recent = self.run.state.recent_losses
        if is_spike(recent, loss, self.run.config.rollback_on_spike):
            return True
        recent.append(loss)
        del recent[:-MAX_LOSSES]
        return False

    def roll_back(self, step: int, loss: float) -> bool:
        """Return to the last scheduled checkpoint, and skip the batches of the steps up to `step`.

        A checkpoint that was only saved because the run was stopped does not count, so that a stopped run returns as
        far as an uninterrupted one. Returns whether there was a checkpoint. Raises Diverged where returning does not
        help.
        """
        run, state = self.run, self.run.state
        folder = run.world.gather(run.world.main_only(self._last_scheduled))[0]  # what the main process found
        what = f"step {step} · the loss is {loss:.4f} after a mean of {statistics.fmean(state.recent_losses):.4f}"
        if folder is None:
            self.console.note(f"{what}: there is no checkpoint yet to go back to")
            return False
        to = read_description(folder)["step"]
        returns = state.returns + 1 if to == state.return_to else 1
        if returns > MAX_RETURNS:
            raise Diverged(
                f"{what}: this happened again after {MAX_RETURNS} returns to {folder}; go on with --init_from=resume "
                "and a lower --learning_rate, or a higher --rollback_on_spike"
            )
        run.is_consistent = False
        restored = checkpoint.restore(folder, run.model)
        checkpoint.restore_optimizers(folder, run.optimizers)
        restored.skipped_batches = state.skipped_batches + step - restored.step
        restored.seconds = state.seconds
        restored.return_to, restored.returns = to, returns
        vars(state).update(vars(restored))
        if state.scaler:
            run.scaler.load_state_dict(state.scaler)
        run.saved_step = state.step
        run.is_consistent = True
        self.log.write("resume", state.step, tokens=state.tokens, skipped_batches=state.skipped_batches, because=what)
        self.console.note(f"{what}: going back to {folder.name} and skipping the batches since then")
        return True

    def _last_scheduled(self) -> Path | None:
        """Return the newest intact checkpoint that an uninterrupted run has too; None where there is none.

        All checkpoints of older versions, which did not record this, count.
        """
        out_dir, newest = self.run.out_dir, self.run.state.return_to
        steps = [step for step in saved_steps(out_dir) if newest is None or step <= newest]
        return checkpoint.latest(out_dir, self.console.note, newest) if steps else None
