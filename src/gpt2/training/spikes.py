"""Losses out of the ordinary, and the way back from them.

A batch that throws training off course is left behind: the run goes on from its last checkpoint with the batches
after it, as Chowdhery et al. 2022 (PaLM, section 5.1) did by hand.
"""

import statistics
from collections.abc import Sequence

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.layout import saved_steps
from gpt2.runlog.console import RunConsole
from gpt2.runlog.records import LogWriter
from gpt2.training.setup import Run

FEWEST, MOST = 32, 128
"""Losses that a new one is judged by."""
MOST_RETURNS = 3
"""To one checkpoint; then the batches are not at fault."""


def is_spike(recent: Sequence[float], loss: float, deviations: float) -> bool:
    """Whether a loss is more than so many standard deviations above the mean of the `recent` ones."""
    if len(recent) < FEWEST:
        return False
    return loss > statistics.fmean(recent) + deviations * statistics.pstdev(recent)


class SpikeWatch:
    """Sees every loss of a run. All processes see the same ones and do the same."""

    def __init__(self, run: Run, log: LogWriter, console: RunConsole) -> None:
        self.run, self.log, self.console = run, log, console
        self.returns: list[int] = []
        """Steps of the checkpoints gone back to."""

    def sees(self, loss: float) -> bool:
        """Whether this loss is a spike; where it is not, the next ones are judged by it too."""
        deviations, recent = self.run.config.rollback_on_spike, self.run.state.recent_losses
        if not deviations:
            return False
        if is_spike(recent, loss, deviations):
            return True
        recent.append(loss)
        del recent[:-MOST]
        return False

    def roll_back(self, step: int, loss: float) -> bool:
        """Be where the newest checkpoint is, and past the batches of the updates up to `step`.

        Returns whether there was one. Raises UserError where going back does not help.
        """
        run, state = self.run, self.run.state
        found = run.world.main_only(
            lambda: checkpoint.latest(run.out_dir, self.console.note) if saved_steps(run.out_dir) else None
        )
        folder = run.world.gather(found)[0]
        what = f"step {step} · the loss is {loss:.4f} after {statistics.fmean(state.recent_losses):.4f} in the mean"
        if folder is None:
            self.console.note(f"{what}, and there is no checkpoint yet to go back to")
            return False
        restored = checkpoint.restore(folder, run.model)
        self.returns.append(restored.step)
        if self.returns.count(restored.step) > MOST_RETURNS:
            raise UserError(
                f"{what}, again after {MOST_RETURNS} returns to {folder}; go on with --init_from=resume and a lower "
                "--learning_rate, or a higher --rollback_on_spike"
            )
        checkpoint.restore_optimizers(folder, run.optimizers)
        restored.left_out = state.left_out + step - restored.step
        restored.seconds = state.seconds
        vars(state).update(vars(restored))
        if state.scaler:
            run.scaler.load_state_dict(state.scaler)
        run.saved_step = state.step
        self.log.write("resume", state.step, tokens=state.tokens, left_out=state.left_out, because=what)
        self.console.note(f"{what}: back to {folder.name}, and past the batches since")
        return True
