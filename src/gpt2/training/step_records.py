"""The records of optimizer steps: read from the device in groups, logged, and watched for what goes wrong."""

import math
import shlex
from dataclasses import dataclass

from gpt2 import accounting, device
from gpt2.training.rescue import SkippedSteps
from gpt2.training.session import Session
from gpt2.training.spikes import SpikeWatch
from gpt2.training.step import StepResult
from gpt2.training.timing import StragglerWatch, phase_seconds

MAX_SKIPPED = 10
"""Number of steps skipped one after the other that ends a run."""


@dataclass(frozen=True)
class MeasuredStep:
    """A step whose figures were read from the device."""

    step: int
    figures: dict[str, float]
    """loss, lr, grad_norm and tokens, as in its record in log.jsonl."""
    is_skipped: bool
    """Whether it changed nothing."""
    phases: dict[str, float]
    """Seconds of each phase."""
    tokens_per_second: float
    """Speed of the steps that were read together."""


class StepRecords:
    """Logs optimizer steps. A step stays pending until it is logged, so that it can be logged after an exception."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.pending: list[StepResult] = []
        self.measured: list[MeasuredStep] = []
        """Steps that were read from the device and are not logged yet."""
        self.steps_timed, self.seconds_timed = 0, 0.0
        self.skipped = 0
        """Number of steps skipped since the last one that changed the weights."""
        self.spikes = SpikeWatch(session) if session.run.config.rollback_on_spike else None
        self.stragglers = StragglerWatch(session.run.world, session.log, session.console)

    def write(self) -> None:
        """Log the pending steps; reading their losses waits for the device. Raises SkippedSteps after too many."""
        if not self.pending and not self.measured:
            return
        run = self.session.run
        self._measure()
        steps, values = list(self.measured), {}
        for made in steps:
            values = self._values(made)
            self.measured.pop(0)
            if made.is_skipped:
                self._skip(made.step, values)
            elif self._log(made.step, values, made.phases):
                return
        self.stragglers.look(run.state.step, [made.phases for made in steps])
        if run.state.step % run.config.log_interval == 0:
            left = (run.last_step - run.state.step) * self.seconds_timed / self.steps_timed
            self.session.console.step(run.state.step, values, eta_seconds=left)
        run.ledger.mark("records")

    def _measure(self) -> None:
        """Read the figures of the pending steps from the device; their speed is that of all of them together."""
        if not self.pending:
            return
        run, state, config = self.session.run, self.session.run.state, self.session.run.config
        figures = [(r.loss.item(), r.lr, r.grad_norm.item(), bool(r.skipped.item())) for r in self.pending]
        phases = [phase_seconds(r.marks) for r in self.pending]
        self.pending.clear()
        seconds = run.ledger.steps(phases)
        state.seconds += seconds
        self.steps_timed += len(figures)
        self.seconds_timed += seconds
        rate = len(figures) * config.tokens_per_step / seconds
        steps = range(state.step - len(figures) + 1, state.step + 1)
        for step, (loss, lr, grad_norm, is_skipped), spent in zip(steps, figures, phases, strict=True):
            tokens = state.tokens - (state.step - step) * config.tokens_per_step
            values = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "tokens": tokens}
            self.measured.append(MeasuredStep(step, values, is_skipped, spent, rate))

    def _values(self, made: MeasuredStep) -> dict[str, float]:
        """Return the values of a step's record."""
        run = self.session.run
        return made.figures | {
            "tokens_per_second": round(made.tokens_per_second, 1),
            "mfu": round(accounting.mfu(run.model.config, made.tokens_per_second, run.peak_flops), 5),
            "memory": device.peak_memory(run.device),
        }

    def _log(self, step: int, values: dict[str, float], phases: dict[str, float]) -> bool:
        """Log one step; return whether the run went back to a checkpoint because its loss is a spike."""
        session = self.session
        self.skipped = 0
        seconds = {phase: round(s, 5) for phase, s in phases.items()}
        session.log.write("train", step, **values, seconds=seconds)
        session.run.ledger.mark("records")
        if self.spikes is None or not self.spikes.is_spike(values["loss"]):
            return False
        session.saver.wait()
        is_back = self.spikes.roll_back(step, values["loss"])
        session.run.ledger.mark("checkpoints")
        if is_back:
            self.measured.clear()
        return is_back

    def _skip(self, step: int, values: dict[str, float]) -> None:
        """Log a step that changed nothing. Raises SkippedSteps where there were too many one after the other."""
        session, run = self.session, self.session.run
        sequences = run.batches.starts(step - 1 + run.state.skipped_batches).tolist()
        session.log.write("skip", step, **values, rows=sequences)
        what = "loss" if not math.isfinite(values["loss"]) else "gradient"
        session.console.note(f"step {step} · the {what} is not finite: step skipped (its offsets are in log.jsonl)")
        self.skipped += 1
        if self.skipped == MAX_SKIPPED:
            first = step - MAX_SKIPPED
            config = shlex.quote(str(run.out_dir / "config.toml"))
            look = f"gpt2 train {config} --init_from={shlex.quote(str(run.out_dir))} --out_dir=replay"
            raise SkippedSteps(
                f"{MAX_SKIPPED} steps in a row were skipped, from step {first + 1} on; go on from the last "
                f"checkpoint with {run.resume_command} and a lower --learning_rate, or look at that batch with "
                f"{look} --overfit_step={first + run.state.skipped_batches}"
            )
