"""`gpt2 eval`."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from gpt2.cli.allocator import keep_freed_memory
from gpt2.cli.launch import command_line, is_launched, launch
from gpt2.cli.results import results_stream

app = cyclopts.App(name="eval", help="Measure a model.", help_format="markdown")


@app.command
def loss(
    model: str,
    dataset: str,
    /,
    *,
    split: Literal["train", "val"] = "val",
    tokens: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    plot: Path | None = None,
    data_dir: str = "data",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    nproc: str = "1",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int | None:
    """Mean loss, perplexity and bits per byte over a whole split.

    Every token but the first is predicted once. Bits per byte compare models with different tokenizers.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp.
    dataset
        A prepared folder, token files (a folder, file or glob), a name under data_dir, or a corpus.
    split
        Which part of the dataset.
    tokens
        Predict only this many, from the beginning on.
    stride
        Tokens by which a window of the model's context moves on. Default: the whole context; less gives every token
        more to look back on, and takes longer.
    batch_size
        Windows computed at a time.
    plot
        Draw the loss at each position of the context into this picture.
    data_dir
        Where prepared datasets live.
    device
        auto, cpu, cuda, cuda:N or mps.
    dtype
        Format of matrix products.
    nproc
        Processes on this machine that share the work: a number, or auto for one a GPU. torchrun does the same.
    json_
        Print one JSON object instead of a line; it has the loss at each position too.
    """
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line(), None, 0)
    keep_freed_memory()
    import math

    from gpt2.data.dataset import Dataset, open_dataset
    from gpt2.data.shards import Tokens
    from gpt2.device import pick_device, pick_dtype
    from gpt2.distributed.world import joined
    from gpt2.errors import UserError
    from gpt2.evaluate.loss import measure, sliding
    from gpt2.formats.open import build, open_model
    from gpt2.formats.source import Source
    from gpt2.report.picture import check_name, plot_positions
    from gpt2.runlog.console import note

    if plot is not None:
        check_name(plot)
    for name, value in (("batch_size", batch_size), ("stride", stride), ("tokens", tokens)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    with joined(pick_device(device), "auto", 600) as world:

        def find() -> tuple[Source, Dataset, Tokens]:
            source, data = open_model(model), open_dataset(dataset, data_dir, note)
            if stride is not None and stride > (context := source.config.block_size):
                raise UserError(f"stride is {stride}, more than the model's context of {context}; lower it")
            if source.known_tokenizer:
                data.require_tokenizer(source.known_tokenizer.to_json(), source.origin)
            data.require_vocabulary(source.config.vocab_size, source.origin)
            return source, data, data.split(split, 1)

        source, data, found = world.main_first(find)
        length = min(len(found), (tokens or len(found)) + 1)
        block_size = min(source.config.block_size, length - 1)
        where = pick_device(device, world.local_rank)
        result = measure(
            build(source).to(where),
            found,
            sliding(length, block_size, min(stride or block_size, block_size)),
            block_size=block_size,
            batch_size=batch_size,
            dtype=pick_dtype(dtype, where),
            world=world,
        )
        if not world.is_main:
            return None
    if plot is not None:
        plot_positions(result.by_position, f"{source.origin}, {split} of {data.path}", plot)
    bits = result.bits_per_byte(data.tokenizer)
    if json_:
        about = {"model": source.origin, "dataset": str(data.path), "split": split, "tokens": length - 1}
        figures = {"loss": result.mean, "perplexity": math.exp(result.mean), "bits_per_byte": bits}
        print(json.dumps({**about, **figures, "stride": stride or block_size, "by_position": result.by_position}))
    else:
        a_byte = "" if bits is None else f" · {bits:.4f} bits per byte"
        print(
            f"{split} loss {result.mean:.4f} · perplexity {math.exp(result.mean):.2f}{a_byte} · "
            f"{length - 1:,} tokens · {source.origin}"
        )
    return None


@app.command
def hellaswag(
    model: str,
    /,
    *,
    data: Path | None = None,
    limit: int | None = None,
    rendering: Literal["build-nanogpt", "lm-eval"] = "build-nanogpt",
    batch_tokens: int | None = None,
    tokenizer: str | None = None,
    out: Path | None = None,
    write_bin: Path | None = None,
    data_dir: str = "data",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    nproc: str = "1",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> int | None:
    """Share of HellaSwag's tasks in which the model finds the right ending likeliest, of four.

    acc compares the probabilities of the whole endings, acc_norm their means for the length of the endings.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp.
    data
        A .jsonl of tasks, or llm.c's hellaswag_val.bin. Default: the 10,042 tasks for validation, downloaded into
        data_dir once.
    limit
        Only this many tasks, from the first on.
    rendering
        How tasks become text. build-nanogpt: context and ending as they are, means by token. lm-eval: the activity
        first and no tags, as EleutherAI's harness asks, means by character.
    batch_tokens
        Tokens computed at a time. Default: 512 on a CPU, 32768 elsewhere.
    tokenizer
        Tokenizer of a model that brings none: gpt2, byte, or the folder of a dataset or a model.
    out
        Write what the model chose in each task to this file, one JSON object a line.
    write_bin
        Instead of evaluating, write the tasks to this file, as llm.c's program reads them.
    data_dir
        Where the download is kept.
    device
        auto, cpu, cuda, cuda:N or mps.
    dtype
        Format of matrix products; close calls are computed again in float32.
    nproc
        Processes on this machine that share the work: a number, or auto for one a GPU. torchrun does the same.
    json_
        Print one JSON object instead of a line.
    """
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line(), None, 0)
    keep_freed_memory()
    import time
    from contextlib import nullcontext

    from gpt2.device import pick_device, pick_dtype
    from gpt2.distributed.world import joined
    from gpt2.errors import UserError
    from gpt2.evaluate import llmc_choices
    from gpt2.evaluate.choices import Task, check_fits, choose
    from gpt2.evaluate.hellaswag import read_tasks, validation_file
    from gpt2.files import check_free, write_text
    from gpt2.formats.open import build, open_model
    from gpt2.formats.source import Source
    from gpt2.runlog.console import WorkConsole, note

    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    for target in (out, write_bin):
        if target is not None:
            check_free(target)
    with joined(pick_device(device), "auto", 600) as world:
        say = note if world.is_main else lambda line: None

        def find() -> tuple[Source, Path, list[Task]]:
            source = open_model(model, tokenizer)
            known = source.known_tokenizer
            if write_bin is not None and (
                rendering != "build-nanogpt" or (known is not None and known.kind != "gpt2")
            ):
                raise UserError(
                    "llm.c's file holds GPT-2's tokens as build-nanogpt renders them; leave --write_bin out"
                )
            path = data or validation_file(data_dir, say)
            tasks = read_tasks(path, known, rendering, limit, say)
            if write_bin is None:
                check_fits(tasks, source.config)
            return source, path, tasks

        source, path, tasks = world.main_first(find)
        if write_bin is not None:
            world.main_only(lambda: llmc_choices.write(tasks, write_bin))
            say(f"wrote {len(tasks):,} tasks to {write_bin}")
            return None
        where = pick_device(device, world.local_rank)
        chosen = pick_dtype(dtype, where)
        network = build(source).to(where)
        began = time.perf_counter()
        with WorkConsole("tasks") if world.is_main else nullcontext() as console:
            told = {"progress": console.progress} if console else {}
            result = choose(network, tasks, dtype=chosen, batch_tokens=batch_tokens, world=world, **told)
        seconds = time.perf_counter() - began
        if not world.is_main:
            return None
    if out is not None:
        lines = zip(result.labels, result.predictions, result.predictions_norm, result.log_likelihoods, strict=True)
        names = ("task", "label", "prediction", "prediction_norm", "log_likelihoods")
        records = [dict(zip(names, (i, *line), strict=True)) for i, line in enumerate(lines)]
        write_text(out, "".join(json.dumps(record) + "\n" for record in records))
    figures = {
        "acc": result.acc,
        "acc_stderr": result.standard_error(result.acc),
        "acc_norm": result.acc_norm,
        "acc_norm_stderr": result.standard_error(result.acc_norm),
    }
    if json_:
        about = {"model": source.origin, "data": str(path), "rendering": rendering, "tasks": len(tasks)}
        speed = {"seconds": round(seconds, 3), "tasks_per_second": round(len(tasks) / seconds, 3)}
        print(json.dumps({**about, **figures, **speed, "dtype": chosen}), file=results_stream(out))
    else:
        acc, acc_error, norm, norm_error = (float("nan") if f is None else f for f in figures.values())
        print(
            f"HellaSwag acc {acc:.4f} ± {acc_error:.4f} · acc_norm {norm:.4f} ± {norm_error:.4f} · "
            f"{len(tasks):,} tasks · {len(tasks) / seconds:,.1f} tasks/s · {source.origin}",
            file=results_stream(out),
        )
    return None


@app.command
def harness(
    model: str,
    /,
    *arguments: Annotated[str, Parameter(name="ARGUMENTS", allow_leading_hyphen=True)],
    tokenizer: str | None = None,
    dtype: Literal["float32", "auto", "bfloat16", "float16"] = "float32",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Any task of EleutherAI's lm-evaluation-harness: `gpt2 eval harness MODEL --tasks lambada_openai,piqa`.

    Needs lm-eval, which takes all other arguments; `lm-eval run --help` lists them, `lm-eval ls tasks` the tasks.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp.
    arguments
        What lm-eval takes: --tasks, --num_fewshot, --limit, --output_path, --device and --batch_size (both auto
        here), and so on.
    tokenizer
        Tokenizer of a model that brings none: gpt2, byte, or the folder of a dataset or a model.
    dtype
        Format of matrix products.
    json_
        Print lm-eval's results as one JSON object instead of a table.
    """
    import tempfile

    from gpt2.errors import UserError

    try:
        from lm_eval.__main__ import cli_evaluate

        from gpt2.evaluate.harness import NAME
    except ImportError as error:
        raise UserError(f"EleutherAI's harness is not here ({error}); pip install lm-eval") from None
    settings = {"pretrained": model, "tokenizer": tokenizer, "dtype": dtype}
    described = json.dumps({name: value for name, value in settings.items() if value is not None})
    from_file = any(argument.split("=")[0] in ("--config", "-C") for argument in arguments)
    defaults = [] if from_file else ["--device", "auto", "--batch_size", "auto"]  # instead of cuda:0 and 1
    line = [*defaults, *arguments, "--model", NAME, "--model_args", described]
    if not json_:
        run_lm_eval(cli_evaluate, line)
        return
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            run_lm_eval(cli_evaluate, [*line, "--output_path", folder])
        [results] = Path(folder).rglob("results_*.json")
        print(json.dumps(json.loads(results.read_text(encoding="utf-8"))))


def run_lm_eval(main: Callable[[], None], arguments: list[str]) -> None:
    """Run lm-eval's command line. Raises UserError for settings that it refuses."""
    import traceback

    from gpt2.errors import UserError, first_line

    before = sys.argv
    sys.argv = ["lm-eval", "run", *arguments]
    try:
        main()
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(("lm_eval.config", "lm_eval.evaluator")):
            raise  # it does not come from where lm-eval checks its settings
        raise UserError(f"lm-eval: {first_line(error)}") from None
    finally:
        sys.argv = before
