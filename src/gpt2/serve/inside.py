"""Computes what happens inside a served model, in a thread of its own, one text after the other."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import Field

from gpt2.errors import Log, UserError, first_line
from gpt2.generation.weights import with_own_modules
from gpt2.inside.analysis import Analysis, Report, single_token
from gpt2.inside.forward import require_own_parts, require_text
from gpt2.inside.lens_page import as_json, page
from gpt2.inside.predictions import losses
from gpt2.serve.earlier import EarlierWeights
from gpt2.serve.errors import ApiError
from gpt2.serve.schema import ModelName, Strict
from gpt2.serve.served import Served

MOST_WAITING = 4
"""Number of texts that may wait for a model."""
Work = Callable[[Report], str]
"""What a job does: it reports its progress, and returns the result as text."""
Find = Callable[[Report], dict[str, Any]]
"""Computes values, and reports its progress."""
T = TypeVar("T")
PROGRESS_SECONDS = 0.1
"""Least time between two reports of progress."""


class TextBody(Strict):
    """Names a text, and the model that reads it."""

    model: ModelName = None
    text: str = Field(description="Text of at least 2 tokens; `<|endoftext|>` in it is the special token.")


class ReadBody(TextBody):
    """Asks for the losses of a text."""

    step: int | None = Field(
        None, ge=0, description="Optimizer step of a snapshot or checkpoint of the served run, to read with it."
    )


class CurveBody(TextBody):
    """Asks for the losses of a text at the optimizer steps of a run."""

    stream: bool = Field(False, description="Whether progress is reported, as server-sent events.")


class AnalysisBody(ReadBody):
    """Asks for everything that is known about a text."""

    against: str | None = Field(None, description="A corrupted text of as many tokens, for activation patching.")
    answer: str | None = Field(None, description="Token whose logit patching follows; needs against.")
    other: str | None = Field(None, description="Token whose logit is subtracted; needs against.")
    stream: bool = Field(False, description="Whether progress is reported, as server-sent events.")


class PageBody(AnalysisBody):
    """Asks for the same as a page. With a step, it also has the losses at all steps of the run."""

    compare: str | None = Field(None, description="Another served model, whose losses the page shows in comparison.")
    compare_step: int | None = Field(None, ge=0, description="Optimizer step of the run of that model.")


@dataclass(eq=False)
class Job:
    """A job is a text that is computed, or waits for it. Its methods but `report` are for the event loop."""

    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[dict[str, Any] | str | ApiError]" = field(default_factory=asyncio.Queue)
    """Reports of progress, then the result as text, or an error."""
    is_cancelled: bool = False
    future: "Future[None] | None" = None
    reported: float = 0.0

    def put(self, event: dict[str, Any] | str | ApiError) -> None:
        """Add an event from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def report(self, part: str, done: int, total: int) -> None:
        """Add a report of progress, unless there was one just before. Raises CancelledError."""
        if self.is_cancelled:
            raise CancelledError
        if done == total or time.monotonic() - self.reported > PROGRESS_SECONDS:
            self.reported = time.monotonic()
            self.put({"progress": {"part": part, "done": done, "total": total}})

    def cancel(self) -> None:
        """End the job: at once where it waits, and otherwise at the next report of progress."""
        self.is_cancelled = True
        if self.future is not None:
            self.future.cancel()

    async def stream(self) -> AsyncIterator[dict[str, Any] | str]:
        """Yield the reports, and the result at last. Raises ApiError. A job that nobody listens to is cancelled."""
        try:
            while True:
                event = await self.events.get()
                if isinstance(event, ApiError):
                    raise event
                yield event
                if isinstance(event, str):
                    return
        finally:
            self.cancel()

    async def result(self) -> str:
        """Return the result. Raises ApiError."""
        async with contextlib.aclosing(self.stream()) as events:  # pyrefly: ignore[bad-specialization]
            found = [event async for event in events]
        assert isinstance(found[-1], str)
        return found[-1]


class Reader:
    """A reader computes texts with the weights of a served model, while its decoder decodes others."""

    def __init__(self, served: Served, log: Log) -> None:
        self.served, self.log = served, log
        network = served.decoder.engine.model
        self.refusal: ApiError | None = None
        """The answer to all requests where the model has no plain weights."""
        try:
            require_own_parts(network)
        except UserError:
            self.refusal = ApiError(
                400,
                f"the matrices of {served.name} are not in float32, which is needed to look inside; start gpt2 serve "
                "without --dtype and --quantize",
                code="no_plain_weights",
            )
        # the decoder must not call the hooks by which values are read
        self.network = network if self.refusal else with_own_modules(network)
        self.earlier = EarlierWeights(served.run, served.config, network.transformer.wte.weight.device)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="inside")
        self.jobs: list[Job] = []
        self.seconds = 1.0
        """Time that the last job took."""
        self.last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        """What the last analysis was about, and its values: they are often asked for again, to be saved."""

    def losses(self, body: ReadBody) -> Work:
        """Return what computes the losses of a text, as JSON. Raises ApiError for what cannot be read."""
        ids = self._ids(body.text, "text")
        self._check(body.step)

        def work(report: Report) -> str:
            made = self._analysis(ids, report, body.step)
            made.add_losses()
            return as_json(made.finished())

        return work

    def curve(self, body: CurveBody) -> Work:
        """Return what computes the losses of a text at all steps of a run, as JSON.

        `steps` are those of the snapshots and checkpoints that could be read, `unreadable` the others, and `losses`
        is float32 (steps, tokens - 1) in nats. Raises ApiError for what cannot be read.
        """
        find = self._curve(body)
        return lambda report: as_json(find(report))

    def _curve(self, body: TextBody) -> Find:
        ids = self._ids(body.text, "text")
        steps = self._answered(self.earlier.steps)

        def find(report: Report) -> dict[str, Any]:
            found: dict[int, np.ndarray] = {}
            unreadable: list[int] = []
            for done, step in enumerate(steps):
                report("snapshots", done, len(steps))
                try:
                    read = losses(self.earlier.model(step), torch.tensor(ids, device=self.earlier.device), 1)
                    found[step] = read.loss.float().cpu().numpy()
                except UserError:  # the run may have removed a checkpoint
                    unreadable.append(step)
            if not found:
                raise UserError(f"no snapshot or checkpoint of {self.served.name} can be read; see gpt2 show")
            values = {"model": self.served.name, "ids": ids, "steps": list(found), "unreadable": unreadable}
            return values | {"losses": np.stack(list(found.values()))}

        return find

    def analysis(self, body: AnalysisBody) -> Work:
        """Return what computes everything about a text, as JSON. Raises ApiError for what cannot be read."""
        find = self._everything(body)
        return lambda report: as_json(find(report))

    def as_page(self, body: PageBody, compared: str | None) -> Work:
        """Return what computes everything about a text, as the page of `gpt2 lens`.

        compared: the losses of the text under another model, as JSON. Raises ApiError for what cannot be read.
        """
        find, curve = self._everything(body), None if body.step is None else self._curve(body)

        def work(report: Report) -> str:
            values = dict(find(report))
            if compared is not None:
                values["compared"] = json.loads(compared)
            if curve is not None:
                values |= {"step": body.step, "curve": curve(report)}
            return page(values)

        return work

    def _everything(self, body: AnalysisBody) -> Find:
        ids = self._ids(body.text, "text")
        against = None if body.against is None else self._ids(body.against, "against", len(ids))
        answer, other = self._token(body.answer, "answer"), self._token(body.other, "other")
        about = (tuple(ids), against and tuple(against), answer, other, self._check(body.step))

        def find(report: Report) -> dict[str, Any]:
            if self.last is None or self.last[0] != about:
                made = self._analysis(ids, report, body.step)
                made.add_text()
                if against is not None:
                    made.add_patching(against, answer, other)
                self.last = about, made.finished()
            return self.last[1]

        return find

    def submit(self, work: Work) -> Job:
        """Add a job. Raises ApiError (429) where the queue is full."""
        self.jobs = [job for job in self.jobs if job.future and not job.future.done()]
        if len(self.jobs) > MOST_WAITING:
            wait = str(max(1, min(60, round(self.seconds * len(self.jobs)))))
            message = f"{MOST_WAITING} texts wait already to be read by {self.served.name}; try again in {wait} s"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": wait})
        job = Job(asyncio.get_running_loop())
        job.future = self.pool.submit(partial(self._run, job, work))
        self.jobs.append(job)
        return job

    def fail(self, error: ApiError) -> None:
        """End all jobs with an error."""
        for job in self.jobs:
            job.put(error)
            job.cancel()

    def stop(self) -> None:
        """Let the thread end."""
        self.fail(ApiError(503, "the server stops", code="server_stops"))
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _ids(self, text: str, param: str, length: int | None = None) -> list[int]:
        """Return the token ids of a text. Raises ApiError where it cannot be read; length: how many they must be."""
        if self.refusal:
            raise self.refusal
        ids = self.served.encode(text, param)
        try:
            require_text(self.network, torch.tensor(ids), least=2)
        except UserError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from None
        if length is not None and len(ids) != length:
            message = f"{param}: the two texts have {length} and {len(ids)} tokens; give texts of the same number"
            raise ApiError(400, message, param=param)
        return ids

    def _token(self, text: str | None, param: str) -> int | None:
        try:
            return None if text is None else single_token(self.served.tokenizer, text, param)
        except UserError as error:
            raise ApiError(400, str(error), param=param) from None

    def _check(self, step: int | None) -> tuple[Path, int] | None:
        """Return the file of a step that a body names, and its time. Raises ApiError where there is no such step."""
        return None if step is None else self._answered(lambda: self.earlier.find(step))

    def _answered(self, find: Callable[[], T]) -> T:
        """Return what `find` returns. Raises ApiError (400) for a UserError of it."""
        try:
            return find()
        except UserError as error:
            raise ApiError(400, str(error), param="step" if str(error).startswith("step") else "model") from None

    def _analysis(self, ids: list[int], report: Report, step: int | None = None) -> Analysis:
        network = self.network if step is None else self.earlier.model(step)
        name = self.served.name if step is None else f"{self.served.name}, step {step}"
        return Analysis(name, network, self.served.tokenizer, ids, report)

    def _run(self, job: Job, work: Work) -> None:
        """Compute a job, in the thread."""
        began = time.monotonic()
        try:
            job.report("losses", 0, 1)
            job.put(work(job.report))
            self.seconds = time.monotonic() - began
        except CancelledError:
            pass
        except UserError as error:
            job.put(ApiError(400, str(error)))
        except Exception as error:  # whatever happens, the server goes on
            message = f"{self.served.name}: reading failed ({type(error).__name__}: {first_line(error)})"
            self.log(message)
            job.put(ApiError(500, message))
