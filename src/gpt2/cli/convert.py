"""`gpt2 export`, `gpt2 import` and `gpt2 validate`."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.results import results_stream
from gpt2.runlog.console import note

JsonFlag = Annotated[bool, Parameter(name="--json", negative=())]


def export(
    format_: Annotated[Literal["hf", "nanogpt", "llmc", "gguf", "safetensors"], Parameter(name="FORMAT")],
    model: str,
    out: Path,
    /,
    *,
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32",
    tokenizer: str | None = None,
    dataset: str | None = None,
    batch_size: int | None = None,
    block_size: int | None = None,
    data_dir: str = "data",
    json_: JsonFlag = False,
) -> None:
    """Write a model for another program, read it back and say how far its logits are from the model's.

    `hf` is a folder for transformers, `nanogpt` a folder with ckpt.pt, `llmc` a folder with the four files of
    llm.c's --write_tensors, `gguf` a file for llama.cpp, `safetensors` a file with everything in it.

    Parameters
    ----------
    format_
        Which program's.
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file.
    out
        Folder or file to make; it must not be there yet.
    dtype
        Format of the numbers; q8_0 is for gguf. llmc has float32 and bfloat16 always.
    tokenizer
        Tokenizer of a model that brings none: gpt2, byte, or the folder of a dataset or a model.
    dataset
        llmc: take the debug state's batch from the start of this dataset's validation split. Default: random ids.
    batch_size
        llmc: rows of that batch. Default: 4.
    block_size
        llmc: tokens of a row. Default: 64, or the model's context where that is less.
    data_dir
        Where prepared datasets live.
    json_
        Print one JSON object instead of a line.
    """
    import torch

    from gpt2.data.batches import gather
    from gpt2.data.dataset import open_dataset
    from gpt2.errors import UserError
    from gpt2.formats import llmc
    from gpt2.formats.export import export as run
    from gpt2.formats.open import open_model

    if format_ != "llmc" and (dataset, batch_size, block_size) != (None, None, None):
        raise UserError(f"{format_} has no debug state; leave --dataset, --batch_size and --block_size out")
    source = open_model(model, tokenizer)
    batch = None
    if format_ == "llmc":
        rows = llmc.ROWS if batch_size is None else batch_size
        columns = min(llmc.COLUMNS, source.config.block_size) if block_size is None else block_size
        if rows < 1 or not 1 <= columns <= source.config.block_size:
            raise UserError(
                f"a batch of {rows}·{columns} does not fit the model's {source.config.block_size} positions; change "
                "--batch_size or --block_size"
            )
        if dataset is not None:
            data = open_dataset(dataset, data_dir, note)
            data.require_tokenizer(source.tokenizer.to_json(), source.origin)
            starts = [row * columns for row in range(rows)]
            batch = gather(data.split("val", rows * columns), starts, columns, torch.device("cpu"))
        elif (batch_size, block_size) != (None, None):
            known = source.known_tokenizer or source.config
            batch = llmc.random_batch(min(known.vocab_size, source.config.vocab_size), rows, columns)
    done = run(source, format_, out, note, dtype, batch)
    say_difference(done.out, done.difference, done.scale, json_)


def import_(
    model: str,
    out: Path,
    /,
    *,
    tokenizer: str | None = None,
    gelu: Literal["tanh", "erf"] | None = None,
    json_: JsonFlag = False,
) -> None:
    """Make a run of a model from elsewhere, to be resumed, sampled or exported.

    What the file knows of its training comes along: nanoGPT's settings, iteration and optimizer state, so that
    `gpt2 train --init_from=resume --out_dir=OUT --dataset=...` goes on where nanoGPT stopped.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file.
    out
        Run folder to make; it must not be there yet.
    tokenizer
        Tokenizer of a model that brings none: gpt2, byte, or the folder of a dataset or a model.
    gelu
        What the model computes, where its file does not say or says it wrongly.
    json_
        Print one JSON object instead of a line.
    """
    from dataclasses import replace

    from gpt2.formats.export import difference, logits_of, probe
    from gpt2.formats.open import build, open_model
    from gpt2.training.import_run import import_run

    source = open_model(model, tokenizer)
    if gelu:
        source = replace(source, config=replace(source.config, gelu=gelu))
    same = replace(source, tensors=dict(source.tensors))  # a name may stand for other weights by then
    checkpoint = import_run(source, out, note)
    if gelu:
        note(f"it computes the {gelu} GELU, as asked")
    made = open_model(str(checkpoint))
    ids = probe(made.config, made.known_tokenizer)
    expected = logits_of(build(same, gelu=made.config.gelu).eval(), ids)
    found = logits_of(build(made).eval(), ids)
    say_difference(out, difference(found, expected), expected.abs().max().item(), json_)


def validate(model: str, /, *, json_: JsonFlag = False) -> int:
    """Compare logits, loss and 50 greedy tokens with Hugging Face's implementation.

    Needs transformers. Exits with status 1 where more than rounding differs.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file.
    json_
        Print one JSON object instead of lines.
    """
    from dataclasses import asdict

    from gpt2.evaluate.against_transformers import compare
    from gpt2.formats.open import build, open_model

    source = open_model(model)
    result = compare(build(source).eval(), note)
    if json_:
        print(json.dumps({"model": source.origin, "agrees": result.agrees, **asdict(result)}))
        return 0 if result.agrees else 1
    same = sum(a == b for a, b in zip(result.greedy, result.their_greedy, strict=True))
    relative = result.logit_difference / (result.logit_scale or 1.0)
    print(f"logits  largest difference {result.logit_difference:.2g}, {relative:.1g} of the largest logit")
    print(f"loss    {result.loss:.6f} here, {result.their_loss:.6f} there")
    print(f"greedy  {same} of {len(result.greedy)} tokens equal")
    print("agrees with transformers" if result.agrees else "DIFFERS from transformers by more than rounding")
    return 0 if result.agrees else 1


def say_difference(out: Path, difference: float, scale: float, as_json: bool) -> None:
    """End a conversion with what reading it back gave."""
    line = f"wrote {out} · read back: largest logit difference {difference:.2g} (largest logit {scale:.3g})"
    if as_json:
        line = json.dumps({"out": str(out), "logit_difference": difference, "logit_scale": scale})
    print(line, file=results_stream(out))
