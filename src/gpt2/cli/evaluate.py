"""`gpt2 eval`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

app = cyclopts.App(name="eval", help="Measure a model.", help_format="markdown")


@app.command
def loss(
    model: str,
    dataset: str,
    /,
    *,
    split: Literal["train", "val"] = "val",
    batch_size: int = 16,
    data_dir: str = "data",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Mean loss and perplexity over a whole split, in blocks of the model's context.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp.
    dataset
        A prepared folder, token files (a folder, file or glob), a name under data_dir, or a corpus.
    split
        Which part of the dataset.
    batch_size
        Blocks computed at a time.
    data_dir
        Where prepared datasets live.
    device
        auto, cpu, cuda, cuda:N or mps.
    dtype
        Format of matrix products.
    json_
        Print one JSON object instead of a line.
    """
    import math

    from gpt2.data.dataset import open_dataset
    from gpt2.device import pick_device, pick_dtype
    from gpt2.errors import UserError
    from gpt2.evaluate.loss import evaluate_loss
    from gpt2.formats.open import build, open_model
    from gpt2.runlog.console import note

    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    where = pick_device(device)
    source = open_model(model)
    data = open_dataset(dataset, data_dir, note)
    if source.known_tokenizer:
        data.require_tokenizer(source.known_tokenizer.to_json(), source.origin)
    data.require_vocabulary(source.config.vocab_size, source.origin)
    block_size = source.config.block_size
    tokens = data.split(split, block_size)
    value = evaluate_loss(
        build(source).to(where),
        tokens,
        block_size=block_size,
        batch_size=batch_size,
        batches=0,
        dtype=pick_dtype(dtype, where),
    )
    scored = (len(tokens) - 1) // block_size * block_size
    if json_:
        figures = {"model": source.origin, "dataset": str(data.path), "split": split, "tokens": scored}
        print(json.dumps({**figures, "loss": value, "perplexity": math.exp(value)}))
    else:
        print(f"{split} loss {value:.4f} · perplexity {math.exp(value):.2f} · {scored:,} tokens · {source.origin}")


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
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
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
    json_
        Print one JSON object instead of a line.
    """
    import time

    from gpt2.device import pick_device, pick_dtype
    from gpt2.errors import UserError
    from gpt2.evaluate import llmc_choices
    from gpt2.evaluate.choices import check_fits, choose
    from gpt2.evaluate.hellaswag import read_tasks, validation_file
    from gpt2.files import write_text
    from gpt2.formats.open import build, open_model
    from gpt2.runlog.console import WorkConsole, note

    if batch_tokens is not None and batch_tokens < 1:
        raise UserError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    for target in (out, write_bin):
        if target is not None and target.exists():
            raise UserError(f"{target} already exists; name another file")
    where = pick_device(device)
    source = open_model(model, tokenizer)
    known = source.known_tokenizer
    if write_bin is not None and (rendering != "build-nanogpt" or (known is not None and known.kind != "gpt2")):
        raise UserError("llm.c's file holds GPT-2's tokens as build-nanogpt renders them; leave --write_bin out")
    path = data or validation_file(data_dir, note)
    tasks = read_tasks(path, known, rendering, limit, note)
    if write_bin is not None:
        llmc_choices.write(tasks, write_bin)
        note(f"wrote {len(tasks):,} tasks to {write_bin}")
        return
    check_fits(tasks, source.config)
    chosen = pick_dtype(dtype, where)
    network = build(source).to(where)
    began = time.perf_counter()
    with WorkConsole("tasks") as console:
        result = choose(network, tasks, dtype=chosen, batch_tokens=batch_tokens, progress=console.progress)
    seconds = time.perf_counter() - began
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
        print(json.dumps({**about, **figures, **speed, "dtype": chosen}))
    else:
        acc, acc_error, norm, norm_error = (float("nan") if f is None else f for f in figures.values())
        print(
            f"HellaSwag acc {acc:.4f} ± {acc_error:.4f} · acc_norm {norm:.4f} ± {norm_error:.4f} · "
            f"{len(tasks):,} tasks · {len(tasks) / seconds:,.1f} tasks/s · {source.origin}"
        )
