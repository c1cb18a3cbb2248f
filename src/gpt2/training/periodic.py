"""What happens every N optimizer steps: evaluation, HellaSwag, samples and checkpoints, each a small object.

An object has `due`, which says whether it is its turn at the step that the run is at, and `run`, which does it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Protocol

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.evaluation.choices import choose
from gpt2.evaluation.loss import Progress, evaluate_loss, no_progress
from gpt2.generation.text import decode_with, encode_prompt, read_prompt, request_for
from gpt2.tokenizers import Tokenizer
from gpt2.training.budget import evaluations_since
from gpt2.training.config import TrainConfig
from gpt2.training.run import Run
from gpt2.training.session import Session

SAMPLE_SEPARATOR = "\n---------------\n"
SAMPLES_TOGETHER = 8
"""Largest number of samples that are decoded together, because the keys and values of each need memory."""


class Periodic(Protocol):
    """A task that a run does every N optimizer steps."""

    @property
    def interval(self) -> int:
        """N, the number of optimizer steps from one time to the next; 0 is off. No step is made past a multiple."""
        ...

    def due(self, ending: str | None) -> bool:
        """Return whether to run now. ending: why the run ends at this step; None for a run that goes on."""
        ...

    def run(self) -> str | None:
        """Do the task, in all processes together. Return why the run has to end now, or None.

        The loop has asked before whether a signal came. A task that takes long calls
        `session.stop.check_all_processes()` now and then, which raises Stopped where one came meanwhile. A task ends
        with `run.ledger.mark(phase)`, to which its time is attributed.
        """
        ...


def is_due(run: Run, interval: int) -> bool:
    """Return whether something that happens every `interval` optimizer steps happens now; an interval of 0 is off."""
    return interval > 0 and run.state.step % interval == 0


class Evaluation:
    """Measures training and validation loss, and watches whether the validation loss still improves."""

    def __init__(self, session: Session) -> None:
        self.session, self.interval = session, session.run.config.eval_interval or 0
        self.losses: dict[str, float] = {}
        """The last `train_loss` and `val_loss`."""
        self.save_step: int | None = None
        """The step at which the last evaluation asked for a checkpoint."""

    def due(self, ending: str | None) -> bool:
        run = self.session.run
        # an imported model is a checkpoint whose loss is not known, and may be the best
        is_unmeasured = run.saved_step == run.state.step and run.state.best_step is None
        return ending is not None or is_due(run, self.interval) or (self.interval > 0 and is_unmeasured)

    def run(self) -> str | None:
        session, run, state, config = self.session, self.session.run, self.session.run.state, self.session.run.config
        self.losses = estimate_losses(run, session.progress("evaluating"))
        train_loss, val_loss = self.losses["train_loss"], self.losses["val_loss"]
        is_best = math.isfinite(val_loss) and (state.best_val_loss is None or val_loss < state.best_val_loss)
        if is_best:
            state.best_val_loss, state.best_step = val_loss, state.step
        seconds = round(run.ledger.mark("evaluation"), 5)
        session.log.write("eval", state.step, **self.losses, seconds=seconds)
        session.console.note(f"step {state.step} · train loss {train_loss:.4f} · val loss {val_loss:.4f}")
        run.ledger.mark("records")
        is_worth_saving = state.step > 0 or run.saved_step == 0  # initial weights are not, unless they were imported
        if is_worth_saving and (is_best or config.always_save_checkpoint):
            self.save_step = state.step
        patience = config.early_stopping_patience
        waited = evaluations_since(state.best_step or 0, state.step, self.interval) if patience else 0
        return "early_stopping_patience" if patience and waited >= patience else None


def estimate_losses(run: Run, progress: Progress = no_progress) -> dict[str, float]:
    """Return the mean loss in nats over the fixed evaluation blocks of both splits: `train_loss`, `val_loss`.

    progress: called between two batches; an exception that it raises ends the evaluation.
    """
    splits = {"train_loss": run.batches.tokens, "val_loss": run.val_tokens}
    return {
        name: evaluate_loss(
            run.model,
            tokens,
            block_size=run.config.block_size,
            batch_size=run.config.batch_size,
            batches=run.config.eval_iters or 0,
            dtype=run.config.dtype,
            eot_token=run.tokenizer.eot if run.config.document_mask else None,
            answers=run.batches.answers,
            world=run.world,
            progress=progress,
        )
        for name, tokens in splits.items()
    }


def leave_out(session: Session, what: str, phase: str, error: UserError) -> None:
    """Say why a task gave no result, such as logits that are not finite. The training goes on, and decides itself."""
    session.console.note(f"no {what} at step {session.run.state.step}: {error}")
    session.run.ledger.mark(phase)


class HellaSwag:
    """Measures how often the model finds the right ending in HellaSwag's tasks."""

    def __init__(self, session: Session) -> None:
        self.session, self.interval = session, session.run.config.hellaswag_interval

    def due(self, ending: str | None) -> bool:
        run = self.session.run
        return is_due(run, self.interval) or (ending is not None and bool(run.hellaswag))

    def run(self) -> None:
        session, run = self.session, self.session.run
        show = session.progress("HellaSwag")
        try:
            result = choose(
                run.model,
                run.hellaswag,
                dtype=run.config.dtype,
                world=run.world,
                progress=lambda done, total, tasks: show(done, total),
            )
        except UserError as error:
            leave_out(session, "HellaSwag", "evaluation", error)
            return
        seconds = round(run.ledger.mark("evaluation"), 5)
        session.log.write("eval", run.state.step, acc=result.acc, acc_norm=result.acc_norm, seconds=seconds)
        session.console.note(
            f"step {run.state.step} · HellaSwag acc {result.acc:.4f} · acc_norm {result.acc_norm:.4f}"
        )
        run.ledger.mark("records")


class Sampling:
    """Writes texts that the model continues from the prompts."""

    def __init__(self, session: Session) -> None:
        self.session, self.interval = session, session.run.config.sample_interval

    def due(self, ending: str | None) -> bool:
        return is_due(self.session.run, self.interval)

    def run(self) -> None:
        session, run, step = self.session, self.session.run, self.session.run.state.step
        try:
            text = sample_texts(run, session.stop.check_all_processes)
        except UserError as error:
            leave_out(session, "sample", "sampling", error)
            return
        session.log.sample(step, text, seconds=round(run.ledger.mark("sampling"), 5))
        session.console.note(f"--- sample at step {step}\n{text.strip()}\n---")
        run.ledger.mark("records")


def sample_prompts(config: TrainConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the prompts of the samples, or none where samples are off.

    A character tokenizer may have no newline; the default prompt, a newline, is then an empty one. Raises UserError
    for a prompt that the tokenizer cannot encode.
    """
    prompts = tuple(map(read_prompt, config.prompts)) if config.sample_interval else ()
    try:
        for prompt in prompts:
            encode_prompt(tokenizer, prompt)
    except UserError:
        if config.sample_start == TrainConfig.sample_start:
            return ("",)
        raise
    return prompts


def sample_texts(run: Run, check: Callable[[], None] = lambda: None) -> str:
    """Return continuations of every prompt, with the same seeds at every step. All processes compute the same ones.

    check: called after each token of each text; an exception that it raises ends the sampling.
    """
    config = run.config
    texts = [prompt for prompt in run.prompts for _ in range(config.num_samples)]
    requests = [
        request_for(
            run.tokenizer,
            prompt,
            max_new_tokens=config.sample_tokens,
            temperature=config.sample_temperature,
            top_k=config.sample_top_k,
            top_p=config.sample_top_p,
            seed=(config.seed + number) % (1 << 63),
        )
        for prompt in run.prompts
        for number in range(config.num_samples)
    ]
    slots = min(len(requests), SAMPLES_TOGETHER)
    for piece in decode_with(run.model, run.tokenizer, requests, slots=slots):
        texts[piece.number] += piece.text
        check()
    return SAMPLE_SEPARATOR.join(texts)


class Saving:
    """Saves a checkpoint, and records the best one."""

    def __init__(self, session: Session, evaluation: Evaluation) -> None:
        self.session, self.evaluation = session, evaluation
        self.interval = session.run.config.checkpoint_interval

    def due(self, ending: str | None) -> bool:
        return ending is not None or self.is_scheduled() or self.evaluation.save_step == self.session.run.state.step

    def is_scheduled(self) -> bool:
        """Return whether an uninterrupted run saves at this step too, so that a run may return here after a spike."""
        run = self.session.run
        has_asked = self.evaluation.save_step == run.state.step and is_due(run, self.evaluation.interval)
        return has_asked or (run.state.step > 0 and is_due(run, self.interval))

    def run(self) -> None:
        session, run, state = self.session, self.session.run, self.session.run.state
        run.ledger.mark()
        run.world.beat("a checkpoint")
        if self.is_scheduled() and run.config.rollback_on_spike and state.return_to != state.step:
            state.return_to, state.returns = state.step, 0
        now = replace(state)

        def tidy() -> None:
            checkpoint.tidy(run.out_dir, now, run.config.keep_checkpoints, session.console.note)

        if run.saved_step == state.step:
            session.saver.wait()
            run.world.main_only(tidy)
        else:
            session.saver.save(state.step, session.take_checkpoint(), tidy)
            run.saved_step = state.step
        run.ledger.mark("checkpoints")
        self.log_saved()

    def log_saved(self) -> None:
        """Log the checkpoints that have been written since the last call."""
        for saved in self.session.saver.collect():
            self.session.log.write("checkpoint", **asdict(saved))
        self.session.run.ledger.mark("records")
