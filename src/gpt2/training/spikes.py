"""Losses out of the ordinary, and the way back from them.

A batch that throws training off course is left behind: the run goes on from its last checkpoint with the batches
after it, as Chowdhery et al. 2022 (PaLM, section 5.1) did by hand.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats.run_folder import read_description, saved_steps
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


class Diverged(UserError):
    """Training makes no progress from where it is: the last checkpoint is better than the weights there are now."""


class SpikeWatch:
    """Sees every loss of a run. All processes see the same ones and do the same."""

    def __init__(self, run: Run, log: LogWriter, console: RunConsole) -> None:
        self.run, self.log, self.console = run, log, console

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
        """Be where the last scheduled checkpoint is, and skip the batches of the updates up to `step`.

        A checkpoint that a stop made is passed over, so that a run that was stopped goes back as far as one that was
        not. Returns whether there was a checkpoint. Raises Diverged where going back did not help.
        """
        run, state = self.run, self.run.state
        folder = run.world.gather(run.world.main_only(self._last_scheduled))[0]
        what = f"step {step} · the loss is {loss:.4f} after {statistics.fmean(state.recent_losses):.4f} in the mean"
        if folder is None:
            self.console.note(f"{what}, and there is no checkpoint yet to go back to")
            return False
        to = read_description(folder)["step"]
        returns = state.returns + 1 if to == state.return_to else 1
        if returns > MOST_RETURNS:
            raise Diverged(
                f"{what}, again after {MOST_RETURNS} returns to {folder}; go on with --init_from=resume and a lower "
                "--learning_rate, or a higher --rollback_on_spike"
            )
        with run.changing():
            restored = checkpoint.restore(folder, run.model)
            checkpoint.restore_optimizers(folder, run.optimizers)
            restored.left_out = state.left_out + step - restored.step
            restored.seconds = state.seconds
            restored.return_to, restored.returns = to, returns
            vars(state).update(vars(restored))
            if state.scaler:
                run.scaler.load_state_dict(state.scaler)
            run.saved_step = state.step
        self.log.write("resume", state.step, tokens=state.tokens, left_out=state.left_out, because=what)
        self.console.note(f"{what}: back to {folder.name}, and past the batches since")
        return True

    def _last_scheduled(self) -> Path | None:
        """The newest intact checkpoint that is not only there because the run was stopped; None where there is none.

        Checkpoints of versions that did not record this all count.
        """
        out_dir, newest = self.run.out_dir, self.run.state.return_to
        steps = [step for step in saved_steps(out_dir) if newest is None or step <= newest]
        return checkpoint.latest(out_dir, self.console.note, newest) if steps else None
