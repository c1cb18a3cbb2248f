"""Measures the accuracy of a model on HellaSwag's tasks."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.device import pick_device, pick_dtype
from gpt2.distributed.world import ALONE, World
from gpt2.errors import Log
from gpt2.evaluation import llmc_choices
from gpt2.evaluation.choices import Progress, Result, Task, check_fits, choose
from gpt2.evaluation.hellaswag import Rendering, read_tasks, validation_file
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Source
from gpt2.tokenizers import gpt2_tokenizer


@dataclass(frozen=True)
class TaskSet:
    """A task set holds tasks, encoded for one model."""

    source: Source
    """The opened model."""
    path: Path
    """File that the tasks are from."""
    rendering: Rendering
    """The way in which the tasks became text."""
    tasks: list[Task]
    """The tasks as token ids."""


@dataclass(frozen=True)
class Accuracy:
    """Holds the choices of a model in the tasks of a file, and the conditions of the evaluation."""

    model: str
    """Origin of the model."""
    data: Path
    """File that the tasks are from."""
    rendering: Rendering
    """The way in which the tasks became text."""
    result: Result
    """The model's choices."""
    seconds: float
    """Time of the evaluation in seconds, without opening the model and the tasks."""
    dtype: str
    """Dtype of matrix products."""

    def figures(self) -> dict[str, Any]:
        """Return all figures as a JSON object; the standard errors are None for a single task."""
        result, tasks = self.result, len(self.result.labels)
        return {
            "model": self.model,
            "data": str(self.data),
            "rendering": self.rendering,
            "tasks": tasks,
            "acc": result.acc,
            "acc_stderr": result.standard_error(result.acc),
            "acc_norm": result.acc_norm,
            "acc_norm_stderr": result.standard_error(result.acc_norm),
            "seconds": round(self.seconds, 3),
            "tasks_per_second": round(tasks / self.seconds, 3),
            "dtype": self.dtype,
        }

    def records(self) -> list[dict[str, Any]]:
        """Return the model's choice in each task, each as a JSON object."""
        names = ("label", "prediction", "prediction_norm", "log_likelihoods")
        result = self.result
        columns = zip(result.labels, result.predictions, result.predictions_norm, result.log_likelihoods, strict=True)
        return [{"task": i, **dict(zip(names, values, strict=True))} for i, values in enumerate(columns)]


def open_task_set(
    model: str,
    tokenizer: str | None = None,
    *,
    data: Path | None = None,
    data_dir: str = "data",
    rendering: Rendering = "build-nanogpt",
    limit: int | None = None,
    log: Log = lambda line: None,
) -> TaskSet:
    """Open a model and the first `limit` tasks of the file `data`, by default of the published validation tasks.

    `log` receives what the user should know about the tasks. Raises UserError if there is no such model or file, or
    if they do not fit together.
    """
    source = open_model(model, tokenizer)
    path = data or validation_file(data_dir, log)
    is_text = path.is_file() and not llmc_choices.is_llmc_choices(path)
    words = source.tokenizer if is_text else source.known_tokenizer
    tasks = read_tasks(path, words, rendering, limit, log)
    check_fits(tasks, source.config)
    return TaskSet(source, path, rendering, tasks)


def write_tasks(
    path: Path,
    *,
    data: Path | None = None,
    data_dir: str = "data",
    limit: int | None = None,
    log: Log = lambda line: None,
) -> int:
    """Write the first `limit` tasks to the file `path` in llm.c's format, as GPT-2's tokens; return their number.

    The tasks are those of the file `data`, by default the published validation tasks. Raises UserError for tasks that
    this format cannot hold, and if a file cannot be read or written.
    """
    tasks = read_tasks(data or validation_file(data_dir, log), gpt2_tokenizer(), "build-nanogpt", limit, log)
    llmc_choices.write(tasks, path)
    return len(tasks)


def measure(
    task_set: TaskSet,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int | None = None,
    world: World = ALONE,
    progress: Progress = lambda done, total, tasks: None,
) -> Accuracy:
    """Let the model of a task set choose an ending in each task. The processes of a `world` share the tasks.

    `batch_tokens` is the number of tokens in a batch; its default depends on the device. Raises UserError if the
    device or dtype does not exist, or the model gives no finite numbers.
    """
    source, tasks = task_set.source, task_set.tasks
    where = pick_device(device, world.local_rank)
    chosen = pick_dtype(dtype, where)
    network = build(source).to(where)
    began = time.perf_counter()
    result = choose(network, tasks, dtype=chosen, batch_tokens=batch_tokens, world=world, progress=progress)
    seconds = time.perf_counter() - began
    return Accuracy(source.origin, task_set.path, task_set.rendering, result, seconds, chosen)
