"""`gpt2 eval hellaswag`."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import OUT, DeviceArg, DTypeArg, JsonFlag, ModelArg, NprocArg, TokenizerArg
from gpt2.cli.launch import command_line, is_launched, is_main_process, launch
from gpt2.cli.results import results_stream
from gpt2.errors import UserError
from gpt2.runlog.console import WorkConsole, note
from gpt2.spelling import counted
from gpt2.training.setting import CONTEXT, OUTPUT, PATH, SAMPLES

if TYPE_CHECKING:
    from gpt2.distributed.world import World
    from gpt2.evaluation.hellaswag_accuracy import Accuracy


@dataclass(frozen=True)
class Options:
    """The options of `gpt2 eval hellaswag`."""

    data: Path | None = None
    """A .jsonl file of tasks, or llm.c's hellaswag_val.bin. Default: the 10,042 validation tasks, downloaded into
    data_dir once."""
    limit: Annotated[int | None, SAMPLES] = None
    """Number of tasks to evaluate, from the first one on. Default: all."""
    rendering: Literal["build-nanogpt", "lm-eval"] = "build-nanogpt"
    """How a task becomes text. `build-nanogpt` takes context and ending unchanged and normalises by tokens. `lm-eval`
    puts the activity first, removes tags and normalises by characters, as EleutherAI's harness does."""
    batch_tokens: Annotated[int | None, CONTEXT] = None
    """Number of tokens in a batch. Default: 512 on a CPU, 32768 on other devices."""
    tokenizer: TokenizerArg = None
    out: Annotated[Path | None, OUTPUT, OUT] = None
    """Write the model's choice in each task to this file, one JSON object per line."""
    write_bin: Annotated[Path | None, OUTPUT] = None
    """Write the tasks to this file in llm.c's format, which holds GPT-2's tokens, and evaluate nothing. No MODEL is
    needed."""
    data_dir: Annotated[str, PATH, Parameter(help="Folder that holds the downloaded tasks.")] = "data"
    device: DeviceArg = "auto"
    dtype: DTypeArg = "auto"


def eval_hellaswag(
    model: Annotated[str | None, *ModelArg.__metadata__] = None,
    /,
    *,
    options: Annotated[Options, Parameter(name="*")] = Options(),
    nproc: NprocArg = "1",
    json_: JsonFlag = False,
) -> int | None:
    """Measure the share of HellaSwag tasks in which the model prefers the correct ending out of four.

    acc compares the log-likelihoods of the endings, acc_norm their mean per token or character. Where a dtype other
    than float32 leaves a choice uncertain, the task is computed again in float32.
    """
    if options.write_bin is not None:
        write_bin(model, options, options.write_bin)
        return None
    if model is None:
        raise UserError("there is no model to evaluate; name one, for example gpt2 eval hellaswag gpt2")
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line())
    from gpt2.device import keep_freed_memory

    keep_freed_memory()
    from gpt2.device import pick_device
    from gpt2.distributed.world import joined
    from gpt2.files import check_free, write_text

    if options.out is not None:
        check_free(options.out)
    with joined(pick_device(options.device), "auto", 600) as world:
        found = evaluate(model, options, world)
        if not world.is_main:
            return None
    if options.out is not None:
        write_text(options.out, "".join(json.dumps(record) + "\n" for record in found.records()))
    figures = found.figures()
    print(json.dumps(figures) if json_ else described(figures), file=results_stream(options.out))
    return None


def write_bin(model: str | None, options: Options, path: Path) -> None:
    """Write the tasks to a file in llm.c's format, in the main process. Raises UserError."""
    from gpt2.evaluation.hellaswag_accuracy import write_tasks
    from gpt2.files import check_free

    if options.rendering != "build-nanogpt" or options.tokenizer not in (None, "gpt2"):
        raise UserError(
            "llm.c's file holds GPT-2's tokens as build-nanogpt renders them; omit --rendering and --tokenizer"
        )
    if not is_main_process():
        return
    check_free(path)
    if model is not None:
        note(f"--write_bin needs no model; {model} is not read")
    count = write_tasks(path, data=options.data, data_dir=options.data_dir, limit=options.limit, log=note)
    note(f"wrote {counted(count, 'task')} to {path}")


def evaluate(model: str, options: Options, world: "World") -> "Accuracy":
    """Evaluate the model in all processes of the world."""
    from gpt2.evaluation.hellaswag_accuracy import measure, open_task_set

    log = note if world.is_main else lambda line: None
    task_set = world.main_first(
        lambda: open_task_set(
            model,
            options.tokenizer,
            data=options.data,
            data_dir=options.data_dir,
            rendering=options.rendering,
            limit=options.limit,
            log=log,
        )
    )
    with WorkConsole("tasks") if world.is_main else nullcontext() as console:
        progress = {"progress": console.progress} if console else {}
        return measure(
            task_set,
            device=options.device,
            dtype=options.dtype,
            batch_tokens=options.batch_tokens,
            world=world,
            **progress,
        )


def described(figures: dict[str, Any]) -> str:
    """Return the figures as a line of text."""
    return (
        f"HellaSwag acc {figures['acc']:.4f}{_plus_minus(figures['acc_stderr'])} · "
        f"acc_norm {figures['acc_norm']:.4f}{_plus_minus(figures['acc_norm_stderr'])} · "
        f"{counted(figures['tasks'], 'task')} · {figures['tasks_per_second']:,.1f} tasks/s · {figures['model']}"
    )


def _plus_minus(error: float | None) -> str:
    """Return a standard error as it follows a figure; a single task has none."""
    return "" if error is None else f" ± {error:.4f}"
