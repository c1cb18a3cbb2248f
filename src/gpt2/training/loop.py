"""The training loop: what is due at this step, then one update, then its record."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from gpt2 import accounting, checkpoint, device
from gpt2.distributed.world import World, joined
from gpt2.errors import UserError
from gpt2.evaluate.choices import choose
from gpt2.evaluate.loss import evaluate_loss
from gpt2.runlog.console import RunConsole, note
from gpt2.runlog.records import LogWriter
from gpt2.training.config import TrainConfig
from gpt2.training.ending import evaluations_since
from gpt2.training.folder import claimed
from gpt2.training.ledger import Ledger
from gpt2.training.samples import sample_texts
from gpt2.training.saver import Saver
from gpt2.training.setup import Run, set_up
from gpt2.training.spikes import SpikeWatch
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


def train(config: TrainConfig) -> TrainResult:
    """Train, fine-tune, resume or (eval_only) just evaluate, as `config` says. Raises UserError.

    In the main thread, SIGINT and SIGTERM finish the current update, save and return; a second one exits. Under
    torchrun all its processes train together; a signal to one of them ends all.
    """
    where = device.pick_device(config.device)
    with joined(where, config.backend, config.dist_timeout) as world, memory_may_not_do():
        return _train(set_up(config, note, world))


@contextmanager
def memory_may_not_do() -> Iterator[None]:
    """Say what helps where the device's memory is too small. Raises UserError."""
    try:
        yield
    except RuntimeError as error:
        if device.is_out_of_memory(error):
            raise UserError(
                "the memory does not hold the run; lower --batch_size and raise --gradient_accumulation_steps to "
                "keep the tokens per step, add --activation_checkpointing, or share the model between more "
                "processes with --zero_stage=1 or --parallel=fsdp"
            ) from error
        raise


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
            LogWriter(run.out_dir, speaks, trackers) as log,
            Saver(run.world, config.async_checkpoint) as saver,
            stop_on_signals(run.world, saver) as stop,
        ):
            return Loop(run, console, log, saver).until(stop)


class Stop:
    """Whether a signal asked one of the processes, and so all, to end the run, or a checkpoint cannot be written."""

    def __init__(self, world: World, saver: Saver) -> None:
        self.world, self.saver = world, saver
        self.signal: int | None = None
        self.seconds = 0.0
        """That asking took: the processes wait for each other."""

    def __bool__(self) -> bool:
        began = time.perf_counter()
        answer = self.world.any(self.signal is not None or self.saver.failed)
        self.seconds += time.perf_counter() - began
        return answer


@contextmanager
def stop_on_signals(world: World, saver: Saver) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the second exits at once."""
    stop = Stop(world, saver)

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal is not None:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # the live line hides the cursor
            os._exit(128 + number)
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's business
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def estimate_losses(run: Run) -> dict[str, float]:
    """Mean loss over the fixed evaluation places of both splits: `train_loss`, `val_loss`."""
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
        )
        for name, tokens in splits.items()
    }


class Loop:
    """Drives a run and keeps its records."""

    def __init__(self, run: Run, console: RunConsole, log: LogWriter, saver: Saver) -> None:
        self.run, self.console, self.log, self.saver = run, console, log, saver
        self.pending: list[StepResult] = []
        self.steps_timed, self.seconds_timed = 0, 0.0
        self.skipped = 0
        """Updates skipped since the last that was made."""
        self.spikes = SpikeWatch(run, log, console)
        self.stragglers = StragglerWatch(run, log, console)
        self.losses: dict[str, float] = {}
        self.ledger = Ledger()

    def until(self, stop: Stop) -> TrainResult:
        """Train until a budget is used up, patience is at its end, or a signal."""
        run, config, state = self.run, self.run.config, self.run.state
        event, data = "start" if run.saved_step is None else "resume", run.data_fingerprint
        about = device.about(run.device) | {"processes": run.world.size, "data": data}
        self.log.write(event, state.step, tokens=state.tokens, **about)
        if config.write_tensors and run.saved_step is None:
            run.world.main_only(lambda: write_tensors(run, self.console.note))
        while True:
            end = self.budget_used_up()
            last = end is not None
            save = last or (state.step > 0 and self.due(config.checkpoint_interval))
            unmeasured = config.eval_interval > 0 and run.saved_step == state.step and state.best_step is None
            evaluating = last or self.due(config.eval_interval) or unmeasured  # an imported model may be the best
            skipped = evaluating and bool(stop)  # whoever asks to stop does not wait for an evaluation
            if evaluating and not skipped:
                save |= self.evaluate()
                if not last and self.is_out_of_patience():
                    end, last, save = "early_stopping_patience", True, True
            if (self.due(config.hellaswag_interval) or (last and run.hellaswag)) and not stop:
                self.hellaswag()
            if not stop and self.due(config.sample_interval):
                self.sample()
            stopping = bool(stop)  # read once: a signal may come at any moment
            if save or stopping:
                self.save()
            if last or stopping:
                break
            self.ledger.mark()
            while True:  # updates with nothing between them
                self.pending.append(train_step(run))
                state.step += 1
                state.tokens += config.tokens_per_step
                if state.step % config.log_interval == 0 or self.anything_due() or stop:
                    break
            self.record()
        self.saver.wait()
        self.ledger.mark("checkpoints")
        self.record_saved()
        stopped = stopping and (skipped or not last)
        self.ledger.move("waiting", stop.seconds)
        self.log.write(
            "end",
            state.step,
            tokens=state.tokens,
            stopped=stopped,
            because="signal" if stopped else end,
            seconds=self.ledger.totals(),
        )
        if end == "early_stopping_patience" and not stopped:
            self.console.note(
                f"the validation loss is best at step {state.best_step}, and not better in "
                f"{config.early_stopping_patience} evaluations since"
            )
        if stopped:
            go_on = f"gpt2 train --init_from=resume --out_dir={run.out_dir}"
            self.console.note(f"stopped at step {state.step} and saved; go on with {go_on}")
        else:
            self.console.note(f"finished at step {state.step}; try gpt2 sample {run.out_dir}")
        return TrainResult(
            run.out_dir, state.step, self.losses.get("train_loss"), self.losses.get("val_loss"), stopped
        )

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
        """Log the updates made since the last record; reading their losses waits for the device."""
        run, state, config = self.run, self.run.state, self.run.config
        figures = [(r.loss.item(), r.grad_norm.item(), r.lr, bool(r.skipped.item())) for r in self.pending]
        split = [r.watch.seconds() for r in self.pending]
        self.pending.clear()
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
            go_on = f"gpt2 train --init_from=resume --out_dir={run.out_dir}"
            look = f"gpt2 train --init_from={run.out_dir} --dataset={run.config.dataset} --out_dir=replay"
            raise UserError(
                f"{MOST_SKIPPED} updates in a row were skipped, from step {first + 1} on; go on from the last "
                f"checkpoint with {go_on} and a lower --learning_rate, or look at that batch with {look} "
                f"--overfit_step={first + run.state.left_out}"
            )

    def evaluate(self) -> bool:
        """Measure both losses; returns whether the model is now to be saved."""
        run, state = self.run, self.run.state
        self.ledger.mark()
        self.losses = estimate_losses(run)
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
        result = choose(run.model, run.hellaswag, dtype=run.config.dtype, world=run.world)
        seconds = round(self.ledger.mark("evaluation"), 5)
        self.tell("eval", step, {"acc": result.acc, "acc_norm": result.acc_norm, "seconds": seconds})
        self.console.note(f"step {step} · HellaSwag acc {result.acc:.4f} · acc_norm {result.acc_norm:.4f}")

    def sample(self) -> None:
        """Have the model continue the prompts, into samples/."""
        self.ledger.mark()
        text, step = sample_texts(self.run), self.run.state.step
        self.log.sample(step, text, seconds=round(self.ledger.mark("sampling"), 5))
        self.console.note(f"--- sample at step {step}\n{text.strip()}\n---")
        self.ledger.mark("records")

    def save(self) -> None:
        """Have a checkpoint of this step on disk, or on its way there, and the best one known."""
        run, state = self.run, self.run.state
        self.ledger.mark()
        run.world.beat("a checkpoint")
        now, keep = replace(state, scaler=run.scaler.state_dict()), run.config.keep_checkpoints
        if run.saved_step == state.step:
            self.saver.wait()
            run.world.main_only(lambda: checkpoint.tidy(run.out_dir, now, keep))
        else:
            about = {"train": run.config.as_dict(), "dataset": run.data_fingerprint}
            taken = checkpoint.snapshot(run.out_dir, now, run.model, run.optimizers, run.tokenizer, about)
            self.saver.save(state.step, taken, lambda: checkpoint.tidy(run.out_dir, now, keep))
            run.saved_step = state.step
        self.ledger.mark("checkpoints")
        self.record_saved()

    def record_saved(self) -> None:
        """Log the checkpoints that have come to disk."""
        for saved in self.saver.collect():
            self.log.write("checkpoint", **asdict(saved))
        self.ledger.mark("records")

    def tell(self, event: str, step: int, values: dict[str, float], seconds: dict[str, float] | None = None) -> None:
        """Write a record. seconds: what went into which part."""
        self.log.write(event, step, **values, **({"seconds": seconds} if seconds else {}))
        self.ledger.mark("records")
