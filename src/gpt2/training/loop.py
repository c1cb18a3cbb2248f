"""The training loop: what is due at this step, then optimizer steps, then their records."""

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gpt2
from gpt2 import accounting, device
from gpt2.distributed.world import joined
from gpt2.errors import ReportedElsewhere, TrainingFailed, UserError, require
from gpt2.model import GPT
from gpt2.runlog.console import RunConsole, note
from gpt2.runlog.records import Listener
from gpt2.spelling import counted
from gpt2.training.budget import budget_reached, to_train_longer
from gpt2.training.config import TrainConfig
from gpt2.training.periodic import Evaluation, HellaSwag, Periodic, Sampling, Saving, estimate_losses, is_due
from gpt2.training.rescue import SkippedSteps, as_user_error, save_last_step, traceback_of
from gpt2.training.run import Run
from gpt2.training.session import Session, open_session, release, require_idle
from gpt2.training.setup import set_up
from gpt2.training.signals import Stopped
from gpt2.training.snapshots import Snapshots
from gpt2.training.spikes import Diverged
from gpt2.training.step import train_step
from gpt2.training.step_records import StepRecords
from gpt2.training.timing import Ledger
from gpt2.training.write_tensors import write_tensors


@dataclass(frozen=True)
class TrainResult:
    """A result says how a run ended."""

    out_dir: Path
    step: int
    """Number of optimizer steps made in all."""
    train_loss: float | None
    val_loss: float | None
    """Losses of the last evaluation, in nats."""
    stopped: bool
    """Whether a signal ended the run early; it can be resumed."""


def train(
    config: TrainConfig,
    *,
    model: GPT | None = None,
    callback: Listener | None = None,
    quiet: bool = False,
    imports: float = 0.0,
) -> TrainResult:
    """Train, fine-tune, resume or (eval_only) just evaluate, as `config` says.

    model: a GPT to train in place of the one that `config` describes, for example one with other blocks; a resumed
    run loads its weights into it. Settings of the model (n_layer, dropout, …) may then be omitted, and must not
    contradict it; parameters are saved, buffers are not. callback: called as `callback(event, step, values)` with
    every record of log.jsonl (docs/records.md) in every process. Records of steps arrive together every log_interval
    steps. An exception that it raises, for example KeyboardInterrupt, ends the run, which is saved first. quiet:
    print nothing; by default the progress goes to stderr, in a bar on a terminal and elsewhere in a line every
    log_interval steps.

    In the main thread SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 finish the current step, save and return; a second
    one exits. Whatever else ends the training, the last complete step is saved where that is possible. Raises
    UserError, or TrainingFailed for an exception that is not the user's. Under torchrun all its processes train
    together; a signal to one of them ends all. imports: seconds that the process needed before this call, for the
    log.
    """
    _check_types(config, model, callback)
    ledger = Ledger(imports)
    where = device.pick_device(config.device)
    with joined(where, config.backend, config.dist_timeout) as world, device.out_of_memory_advice():
        if not config.eval_only:  # before its files are judged, which another process may not have written yet
            world.main_only(lambda: require_idle(Path(config.out_dir)))
        run = set_up(config, (lambda line: None) if quiet else note, world, ledger, model)
        with RunConsole(run.last_step, run.state.step, world.is_main and not quiet) as console:
            if config.eval_only:
                return _only_evaluate(run, console)
            with open_session(run, console, callback) as session:
                return Loop(session).train()


def _check_types(config: object, model: object, callback: object) -> None:
    """Raise UserError for arguments of `train` that are none."""
    is_config = isinstance(config, TrainConfig)
    require(is_config, f"config is of type {type(config).__name__}; give a gpt2.TrainConfig(…) with the settings")
    is_model = model is None or isinstance(model, GPT)
    require(is_model, f"model is of type {type(model).__name__}; give a gpt2.GPT, such as gpt2.load(NAME)[0]")
    is_function = callback is None or callable(callback)
    require(is_function, f"callback is of type {type(callback).__name__}; give a function of event, step and values")


def _only_evaluate(run: Run, console: RunConsole) -> TrainResult:
    losses = estimate_losses(run, lambda done, total: console.working("evaluating", done, total))
    train_loss, val_loss = losses["train_loss"], losses["val_loss"]
    console.note(f"step {run.state.step} · train loss {train_loss:.4f} · val loss {val_loss:.4f}")
    return TrainResult(run.out_dir, run.state.step, train_loss, val_loss, stopped=False)


class Loop:
    """The loop of one training session."""

    def __init__(self, session: Session) -> None:
        self.session, self.run = session, session.run
        self.evaluation = Evaluation(session)
        self.periodic: list[Periodic] = [self.evaluation, HellaSwag(session), Sampling(session)]
        if self.run.config.snapshot_interval:
            self.periodic.append(Snapshots(session))
        self.saving = Saving(session, self.evaluation)
        self.records = StepRecords(session)

    def train(self) -> TrainResult:
        """Train until the run ends. Whatever goes wrong, the last complete step is saved first if it can be.

        Raises UserError for every exception; its cause is the exception itself.
        """
        try:
            result = self.until_the_end()
        except BaseException as error:
            problem = self.rescued(error)
            if problem is error or not isinstance(error, Exception):
                raise
            raise problem from error
        if self.run.world.any(self.session.log.lost):
            self.run.world.main_only(self.session.restore_folder)
            raise UserError(
                f"{self.run.out_dir} was deleted or moved away during the run; step {self.run.state.step} and the "
                f"log are saved in a new folder of that name: go on with {self.run.resume_command}"
            )
        return result

    def until_the_end(self) -> TrainResult:
        """Train until a budget is used up, patience is at its end, or the run is asked to stop.

        A checkpoint comes last at a step: it records whether the evaluation found the best loss.
        """
        self.log_start()
        while True:
            ending = self.budget_used_up()
            try:
                for task in self.periodic:
                    if task.due(ending):
                        self.run.ledger.mark()
                        self.session.stop.check_all_processes()
                        reason = task.run()
                        ending = ending or reason
                is_stopped = ending is None and self.session.stop.asked_between_steps()
            except Stopped:  # a resumed run does again what was due at this step
                is_stopped = True
            if is_stopped:
                ending = "signal" if self.session.stop.signal else "stop"
            if self.saving.due(ending):
                self.saving.run()
            if ending:
                return self.finish(ending, is_stopped)
            self.train_until_something_is_due()

    def train_until_something_is_due(self) -> None:
        """Make optimizer steps with nothing between them, then log them."""
        run, state, config = self.run, self.run.state, self.run.config
        run.ledger.mark()
        while True:
            run.world.beat(f"step {state.step + 1}")
            self.records.pending.append(train_step(run))
            state.step += 1
            state.tokens += config.tokens_per_step
            self.session.console.advance(state.step)
            if (
                state.step % config.log_interval == 0
                or self.is_anything_due()
                or self.session.stop.asked_between_steps()
            ):
                break
        self.records.write()
        self.saving.log_saved()

    def is_anything_due(self) -> bool:
        """Return whether the next optimizer step must wait."""
        run = self.run
        must_read_clock = run.config.max_minutes > 0  # the time of a step is known once it is logged
        is_due_now = any(is_due(run, task.interval) for task in (*self.periodic, self.saving))
        return run.state.step >= run.last_step or must_read_clock or is_due_now

    def budget_used_up(self) -> str | None:
        """Return the setting whose limit is reached, of steps or of minutes by any process's clock, or None."""
        run, state = self.run, self.run.state
        if state.step >= run.last_step:
            return budget_reached(run.config, len(run.batches.tokens), state.step, state.tokens)
        limit = run.config.max_minutes * 60
        return "max_minutes" if limit > 0 and run.world.any(state.seconds >= limit) else None

    def log_start(self) -> None:
        """Log what the run runs on, and write llm.c's files where that is asked for."""
        run, state = self.run, self.run.state
        event = "start" if run.saved_step is None else "resume"
        about = {
            "tokens": state.tokens,
            "version": gpt2.__version__,
            "parameters": accounting.num_params(run.model.config),
            "train_tokens": len(run.batches.tokens),
            **device.about(run.device),
            "processes": run.world.size,
            "data": run.data_fingerprint,
        }
        self.session.log.write(event, state.step, **about, seconds=run.ledger.totals())
        if run.config.write_tensors and run.saved_step is None:
            run.world.main_only(lambda: write_tensors(run, self.session.console.note))

    def finish(self, ending: str, is_stopped: bool) -> TrainResult:
        """Wait for the last checkpoint, and log how the run ended."""
        run, state, console = self.run, self.run.state, self.session.console
        self.session.saver.wait()
        run.ledger.mark("checkpoints")
        self.saving.log_saved()
        run.ledger.move("waiting", self.session.stop.seconds)
        seconds = run.ledger.totals()
        about = {"tokens": state.tokens, "stopped": is_stopped, "because": ending, "seconds": seconds}
        self.session.log.write("end", state.step, **about)
        if ending == "early_stopping_patience":
            console.note(
                f"the validation loss is best at step {state.best_step}, and not better in "
                f"{counted(run.config.early_stopping_patience, 'evaluation')} since"
            )
        if is_stopped:
            console.note(f"stopped at step {state.step} and saved; go on with {self.run.resume_command}")
        else:
            console.note(f"finished at step {state.step}")
            self.note_what_next(ending)
        losses = self.evaluation.losses
        return TrainResult(run.out_dir, state.step, losses.get("train_loss"), losses.get("val_loss"), is_stopped)

    def note_what_next(self, ending: str) -> None:
        """Show the commands that people want after a run, which the setting `ending` ended."""
        run, out = self.run, shlex.quote(str(self.run.out_dir))
        if not run.own_layers:
            self.session.console.note(f"next: gpt2 sample {out} · gpt2 report {out} · gpt2 plot {out} -o curves.png")
            tokens = len(run.batches.tokens)
            flags = to_train_longer(run.config, ending, tokens, run.state.step, run.state.tokens)
            self.session.console.note(f"to train on: {self.run.resume_command} {flags}")

    def rescued(self, error: BaseException) -> UserError:
        """Save the last complete step after an error, where that is possible; return the error to raise instead."""
        session, run, state = self.session, self.run, self.run.state
        release(session.reserve)
        session.log.listener = None  # it may be what raised the error
        problem = as_user_error(error, state.step, run.world)
        with suppress(Exception):  # the device may have failed, and with it the losses of the last steps
            self.records.write()
        outcome = ""
        if not isinstance(error, Diverged):
            last_made = state.step - self.records.skipped  # the steps after it changed nothing
            outcome = save_last_step(run, session.saver, session.take_checkpoint, last_made, problem)
        details = {"traceback": traceback_of(error)} if isinstance(problem, TrainingFailed) else {}
        if details and not run.world.is_main:  # which writes no log
            note(details["traceback"].rstrip())
        about = {"stopped": True, "because": "error", "error": str(problem), **details}
        session.log.write("end", state.step, tokens=state.tokens, **about)
        if session.log.lost:
            with suppress(OSError):
                session.restore_folder()
        problem.args = (f"{problem}{outcome}",)
        if isinstance(error, SkippedSteps | Diverged) and not run.world.is_main:  # all processes see the same losses
            return ReportedElsewhere(str(problem))
        return problem
