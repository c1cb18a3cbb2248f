"""`gpt2 eval`."""

import json
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
