"""The training loop: what is due at this step, then one update, then its record."""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt2 import accounting, checkpoint, device
from gpt2.distributed.world import joined
from gpt2.errors import TrainingFailed, UserError
from gpt2.evaluate.choices import choose
from gpt2.evaluate.loss import Progress, evaluate_loss, no_progress
from gpt2.runlog.console import RunConsole, note
from gpt2.runlog.records import LogWriter
from gpt2.training.config import TrainConfig
from gpt2.training.ending import evaluations_since
from gpt2.training.folder import claimed, write_config
from gpt2.training.ledger import Ledger
from gpt2.training.rescue import (
    as_user_error,
    memory_may_not_do,
    release,
    reserved_descriptors,
    save_last_step,
    traceback_of,
)
from gpt2.training.samples import sample_texts
from gpt2.training.saver import Saver
from gpt2.training.setup import Run, set_up
from gpt2.training.signals import Stop, Stopped, stop_on_signals
from gpt2.training.spikes import Diverged, SpikeWatch
from gpt2.training.step import StepResult, row_starts, train_step
from gpt2.training.stragglers import StragglerWatch
from gpt2.training.write_tensors import write_tensors

MOST_SKIPPED = 10
"""Updates skipped in a row that end a run."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    out_dir: Path
    step: int
    """Optimizer updates made in all."""
    train_loss: float | None
    val_loss: float | None
    """Losses of the last evaluation."""
    stopped: bool
    """A signal ended the run before its time; it can be resumed."""


def train(config: TrainConfig, imports: float = 0.0) -> TrainResult:
    """Train, fine-tune, resume or (eval_only) just evaluate, as `config` says.

    In the main thread SIGINT, SIGTERM and SIGHUP finish the current update, save and return; a second one exits.
    Whatever else ends the training, the last whole step is saved where that is possible. Raises UserError, or
    TrainingFailed for an exception that is not the user's. Under torchrun all its processes train together; a signal
    to one of them ends all. imports: seconds that the program took to begin, for the log.
    """
    ledger = Ledger(imports)
    where = device.pick_device(config.device)
    with joined(where, config.backend, config.dist_timeout) as world, memory_may_not_do():
        return _train(set_up(config, note, world, ledger))


def _train(run: Run) -> TrainResult:
    config, speaks = run.config, run.world.is_main
    with RunConsole(run.last_step, run.state.step, speaks) as console:
        if config.eval_only:
            losses = estimate_losses(run)
            train_loss, val_loss = losses["train_loss"], losses["val_loss"]
            console.note(f"step {run.state.step} · train loss {train_loss:.4f} · val loss {val_loss:.4f}")
            return TrainResult(run.out_dir, run.state.step, train_loss, val_loss, stopped=False)
        with (
            claimed(run, console.note) as trackers,
            LogWriter(run.out_dir, speaks, trackers, note=console.note) as log,
            Saver(run.world, config.async_checkpoint) as saver,
            reserved_descriptors() as reserve,
        ):
            stop = Stop(run.world, lambda: saver.failed or log.lost)
            with stop_on_signals(stop, console.note):
                return Loop(run, console, log, saver, stop, reserve).train()


def estimate_losses(run: Run, progress: Progress = no_progress) -> dict[str, float]:
    """Mean loss over the fixed evaluation positions of both splits: `train_loss`, `val_loss`.

    progress: called between two batches; an exception that it raises ends the evaluation.
    """
    splits = {"train_loss": run.train_tokens, "val_loss": run.val_tokens}
    return {
        name: evaluate_loss(
            run.model,
            tokens,
            block_size=run.config.block_size,
            batch_size=run.config.batch_size,
            batches=run.config.eval_iters,
            dtype=run.config.dtype,
            boundary=run.boundary,
            world=run.world,
            progress=progress,
        )
        for name, tokens in splits.items()
    }


class Loop:
    """Drives a run and keeps its records."""

    def __init__(
        self, run: Run, console: RunConsole, log: LogWriter, saver: Saver, stop: Stop, reserve: list[int]
    ) -> None:
        self.run, self.console, self.log, self.saver = run, console, log, saver
        self.stop, self.reserve = stop, reserve
        self.pending: list[StepResult] = []
        self.steps_timed, self.seconds_timed = 0, 0.0
        self.skipped = 0
        """Updates skipped since the last that was made."""
        self.spikes = SpikeWatch(run, log, console)
        self.stragglers = StragglerWatch(run, log, console)
        self.losses: dict[str, float] = {}
        self.ledger = run.ledger

    def train(self) -> TrainResult:
        """Train until the run ends. Whatever goes wrong, the last whole step is saved first if it can be.

        Raises UserError for every exception; its cause is the exception itself.
        """
        try:
            result = self.until_the_end()
        except BaseException as error:
            problem = self.rescued(error)
            if problem is error or not isinstance(error, Exception):
                raise
            raise problem from error
        if self.run.world.any(self.log.lost):
            self.run.world.main_only(self.restore_folder)
            raise UserError(
                f"{self.run.out_dir} was deleted or moved away during the run; step {self.run.state.step} and the "
                f"log are saved in a new folder of that name: go on with {self.resume_command}"
            )
        return result

    def until_the_end(self) -> TrainResult:
        """Train until a budget is used up, patience is at its end, or the run is asked to stop."""
        run, config, state = self.run, self.run.config, self.run.state
        self.log_the_start()
        while True:
            end = self.budget_used_up()
            scheduled = save = state.step > 0 and self.due(config.checkpoint_interval)
            try:
                unmeasured = config.eval_interval > 0 and run.saved_step == state.step and state.best_step is None
                if end or self.due(config.eval_interval) or unmeasured:  # an imported model may be the best
                    save |= self.evaluate()
                    scheduled |= save and self.due(config.eval_interval)
                    if end is None and self.is_out_of_patience():
                        end = "early_stopping_patience"
                if self.due(config.hellaswag_interval) or (end and run.hellaswag):
                    self.hellaswag()
                if self.due(config.sample_interval):
                    self.sample()
                stopped = self.stop.asked() and end is None
            except Stopped:  # a resumed run does again what was due at this step
                stopped = True
            if save or end or stopped:
                self.save(scheduled)
            if stopped:
                return self.finish("signal" if self.stop.signal else "stop", stopped)
            if end:
                return self.finish(end, stopped)
            self.ledger.mark()
            while True:  # updates with nothing between them
                self.pending.append(train_step(run))
                state.step += 1
                state.tokens += config.tokens_per_step
                if state.step % config.log_interval == 0 or self.anything_due() or self.stop.asked():
                    break
            self.record()

    def log_the_start(self) -> None:
        """Log what the run runs on, and write llm.c's files where that is asked for."""
        run, state = self.run, self.run.state
        event = "start" if run.saved_step is None else "resume"
        about = device.about(run.device) | {"processes": run.world.size, "data": run.data_fingerprint}
        self.log.write(event, state.step, tokens=state.tokens, **about, seconds=self.ledger.totals())
        if run.config.write_tensors and run.saved_step is None:
            run.world.main_only(lambda: write_tensors(run, self.console.note))

    def finish(self, because: str, stopped: bool) -> TrainResult:
        """Wait for the last checkpoint, and log and say how the run ended."""
        run, state = self.run, self.run.state
        self.saver.wait()
        self.ledger.mark("checkpoints")
        self.record_saved()
        self.ledger.move("waiting", self.stop.seconds)
        seconds = self.ledger.totals()
        self.log.write("end", state.step, tokens=state.tokens, stopped=stopped, because=because, seconds=seconds)
        if because == "early_stopping_patience":
            self.console.note(
                f"the validation loss is best at step {state.best_step}, and not better in "
                f"{run.config.early_stopping_patience} evaluations since"
            )
        if stopped:
            self.console.note(f"stopped at step {state.step} and saved; go on with {self.resume_command}")
        else:
            self.console.note(f"finished at step {state.step}; try gpt2 sample {run.out_dir}")
        train_loss, val_loss = self.losses.get("train_loss"), self.losses.get("val_loss")
        return TrainResult(run.out_dir, state.step, train_loss, val_loss, stopped)

    @property
    def resume_command(self) -> str:
        """The command that continues this run."""
        return f"gpt2 train --init_from=resume --out_dir={self.run.out_dir}"

    def restore_folder(self) -> None:
        """Write the log and the settings of a run again whose folder was deleted or moved away. Raises OSError."""
        self.log.restore()
        write_config(self.run)

    def rescued(self, error: BaseException) -> UserError:
        """Save the last whole step after an error, where that is possible; returns the error to raise instead."""
        run, state = self.run, self.run.state
        release(self.reserve)
        problem = as_user_error(error, state.step)
        with suppress(Exception):  # the device may have failed, and with it the losses of the last updates
            self.record()
        outcome = ""
        if not isinstance(error, Diverged):
            outcome = save_last_step(run, self.saver, self.snapshot, last_made=state.step - self.skipped)
        details = {"traceback": traceback_of(error)} if isinstance(problem, TrainingFailed) else {}
        about = {"stopped": True, "because": "error", "error": str(problem), **details}
        self.log.write("end", state.step, tokens=state.tokens, **about)
        if self.log.lost:
            with suppress(OSError):
                self.restore_folder()
        problem.args = (f"{problem}{outcome}",)
        return problem

    def budget_used_up(self) -> str | None:
        """The setting whose limit is reached: of updates, or of minutes by the clock of any process."""
        run, state = self.run, self.run.state
        if state.step >= run.last_step:
            return "max_iters"
        limit = run.config.max_minutes * 60
        return "max_minutes" if limit > 0 and run.world.any(state.seconds >= limit) else None

    def is_out_of_patience(self) -> bool:
        """Whether the last evaluations, this one with them, found nothing better than the best before them."""
        config, state = self.run.config, self.run.state
        if not config.early_stopping_patience:
            return False
        waited = evaluations_since(state.best_step or 0, state.step, config.eval_interval)
        return waited >= config.early_stopping_patience

    def due(self, interval: int) -> bool:
        """Whether something that happens every `interval` steps happens now."""
        return interval > 0 and self.run.state.step % interval == 0

    def anything_due(self) -> bool:
        """Whether the row of updates must pause before the next one."""
        config = self.run.config
        evaluations = (config.eval_interval, config.hellaswag_interval)
        intervals = (*evaluations, config.checkpoint_interval, config.sample_interval)
        return self.run.state.step >= self.run.last_step or config.max_minutes > 0 or any(map(self.due, intervals))

    def record(self) -> None:
        """Log the updates made since the last record; reading their losses waits for the device.

        An update stays pending until it is logged, so that it can be logged after an exception.
        """
        if not self.pending:
            return
        run, state, config = self.run, self.run.state, self.run.config
        figures = [(r.loss.item(), r.grad_norm.item(), r.lr, bool(r.skipped.item())) for r in self.pending]
        split = [r.watch.seconds() for r in self.pending]
        seconds = self.ledger.updates(split)
        state.seconds += seconds
        self.steps_timed += len(figures)
        self.seconds_timed += seconds
        rate = len(figures) * config.tokens_per_step / seconds
        values: dict[str, float] = {}
        memory = device.peak_memory(run.device)
        for i, (loss, grad_norm, lr, skipped) in enumerate(figures, start=1 - len(figures)):
            values = {
                "loss": loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "tokens": state.tokens + i * config.tokens_per_step,
                "tokens_per_second": round(rate, 1),
                "mfu": round(accounting.mfu(run.model.config, rate, run.peak_flops), 5),
                "memory": memory,
            }
            self.pending.pop(0)
            if skipped:
                self.skip(state.step + i, values)
                continue
            self.skipped = 0
            self.tell("train", state.step + i, values, {part: round(s, 5) for part, s in split[i - 1].items()})
            if self.spikes.sees(loss):
                self.saver.wait()
                is_back = self.spikes.roll_back(state.step + i, loss)
                self.ledger.mark("checkpoints")
                if is_back:
                    self.pending.clear()
                    return
        self.record_saved()
        self.stragglers.look(split)
        if state.step % config.log_interval == 0:
            left = (run.last_step - state.step) * self.seconds_timed / self.steps_timed
            self.console.step(state.step, values, eta_seconds=left)
        self.ledger.mark("records")

    def skip(self, step: int, values: dict[str, float]) -> None:
        """Log an update that was not made. Raises UserError where there were too many in a row."""
        run = self.run
        rows = row_starts(run, step - 1).tolist()
        self.log.write("skip", step, **values, rows=rows)
        what = "loss" if not math.isfinite(values["loss"]) else "gradient"
        self.console.note(f"step {step} · the {what} is not finite: update skipped (its rows are in log.jsonl)")
        self.skipped += 1
        if self.skipped == MOST_SKIPPED:
            first = step - MOST_SKIPPED
            look = f"gpt2 train --init_from={run.out_dir} --dataset={run.config.dataset} --out_dir=replay"
            raise UserError(
                f"{MOST_SKIPPED} updates in a row were skipped, from step {first + 1} on; go on from the last "
                f"checkpoint with {self.resume_command} and a lower --learning_rate, or look at that batch with "
                f"{look} --overfit_step={first + run.state.left_out}"
            )

    def evaluate(self) -> bool:
        """Measure both losses; returns whether the model is now to be saved."""
        run, state = self.run, self.run.state
        self.ledger.mark()
        self.stop.check()
        self.losses = estimate_losses(run, lambda done, total: self.stop.check())
        train_loss, val_loss = self.losses["train_loss"], self.losses["val_loss"]
        best = math.isfinite(val_loss) and (state.best_val_loss is None or val_loss < state.best_val_loss)
        if best:
            state.best_val_loss, state.best_step = val_loss, state.step
        self.tell("eval", state.step, {**self.losses, "seconds": round(self.ledger.mark("evaluation"), 5)})
        self.console.note(f"step {state.step} · train loss {train_loss:.4f} · val loss {val_loss:.4f}")
        return (best or run.config.always_save_checkpoint) and (state.step > 0 or run.saved_step == 0)

    def hellaswag(self) -> None:
        """Measure how often the model finds the right ending in HellaSwag's tasks."""
        run, step = self.run, self.run.state.step
        self.ledger.mark()
        self.stop.check()
        result = choose(
            run.model,
            run.hellaswag,
            dtype=run.config.dtype,
            world=run.world,
            progress=lambda done, total, tasks: self.stop.check(),
        )
        seconds = round(self.ledger.mark("evaluation"), 5)
        self.tell("eval", step, {"acc": result.acc, "acc_norm": result.acc_norm, "seconds": seconds})
        self.console.note(f"step {step} · HellaSwag acc {result.acc:.4f} · acc_norm {result.acc_norm:.4f}")

    def sample(self) -> None:
        """Have the model continue the prompts, into samples/."""
        self.ledger.mark()
        self.stop.check()
        text, step = sample_texts(self.run, self.stop.check), self.run.state.step
        self.log.sample(step, text, seconds=round(self.ledger.mark("sampling"), 5))
        self.console.note(f"--- sample at step {step}\n{text.strip()}\n---")
        self.ledger.mark("records")

    def save(self, scheduled: bool) -> None:
        """Have a checkpoint of this step on disk, or on its way there, and the best one known.

        scheduled: a run that nobody stops saves here too, so that one that goes back after a spike may go back to it.
        """
        run, state = self.run, self.run.state
        self.ledger.mark()
        run.world.beat("a checkpoint")
        if scheduled and run.config.rollback_on_spike and state.return_to != state.step:
            state.return_to, state.returns = state.step, 0
        now = replace(state)

        def tidy() -> None:
            checkpoint.tidy(run.out_dir, now, run.config.keep_checkpoints, self.console.note)

        if run.saved_step == state.step:
            self.saver.wait()
            run.world.main_only(tidy)
        else:
            self.saver.save(state.step, self.snapshot(), tidy)
            run.saved_step = state.step
        self.ledger.mark("checkpoints")
        self.record_saved()

    def snapshot(self) -> checkpoint.Snapshot:
        """What a checkpoint of this step holds."""
        run = self.run
        state = replace(run.state, scaler=run.scaler.state_dict())
        about = {"train": run.config.as_dict(), "dataset": run.data_fingerprint, "machine": run.machine}
        return checkpoint.snapshot(run.out_dir, state, run.model, run.optimizers, run.tokenizer, about)

    def record_saved(self) -> None:
        """Log the checkpoints that have come to disk."""
        for saved in self.saver.collect():
            self.log.write("checkpoint", **asdict(saved))
        self.ledger.mark("records")

    def tell(self, event: str, step: int, values: dict[str, float], seconds: dict[str, float] | None = None) -> None:
        """Write a record. seconds: what went into which part."""
        self.log.write(event, step, **values, **({"seconds": seconds} if seconds else {}))
        self.ledger.mark("records")
