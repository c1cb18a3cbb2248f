"""`gpt2 bench`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from gpt2.cli.allocator import keep_freed_memory
from gpt2.cli.results import results_stream
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig

app = cyclopts.App(name="bench", help="Measure how fast this machine is.", help_format="markdown")


@app.command
def train(
    recipe: str | None = None,
    /,
    *,
    steps: int = 10,
    trace: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> None:
    """Tokens a second of training, where the time goes, MFU and memory.

    Takes a recipe and flags as `gpt2 train` does, and keeps nothing of what it trains. Where the dataset is not
    prepared the tokens are random.

    Parameters
    ----------
    recipe
        A built-in name (shakespeare_char, gpt2, …), a TOML file or a nanoGPT config file.
    steps
        Updates to time, after three that are not.
    trace
        Write PyTorch's profile of two more updates to this file, for chrome://tracing or Perfetto.
    json_
        Print one JSON object instead of lines.
    """
    from gpt2.bench.train import measure
    from gpt2.errors import UserError
    from gpt2.files import check_free

    if steps < 2:
        raise UserError(f"steps is {steps}; it must be at least 2")
    if trace is not None:
        check_free(trace)
    if trace is not None and not trace.parent.is_dir():
        raise UserError(f"there is no folder {trace.parent} for {trace.name}; make it, or name another file")
    keep_freed_memory()
    speed = measure(config, steps, note, trace)
    out = results_stream(trace)
    if json_:
        print(json.dumps(asdict(speed)), file=out)
        return
    parts = " · ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in speed.seconds.items())
    sheet = "" if speed.mfu_data_sheet is None else f", {100 * speed.mfu_data_sheet:.1f}% of the data sheet's"
    print(
        f"{speed.tokens_per_second:,.0f} tokens/s (median of {steps} updates; "
        f"{speed.slowest:,.0f} to {speed.fastest:,.0f})\n"
        f"{1000 * speed.tokens_per_step / speed.tokens_per_second:,.1f} ms an update: {parts}\n"
        f"MFU {100 * speed.mfu_measured:.1f}% of this device's measured {speed.dtype} matrix products{sheet}\n"
        f"peak memory {speed.peak_memory / 1e9:.2f} GB · first update after {speed.until_first_update:.1f} s",
        file=out,
    )


@app.command
def sample(
    model: str,
    /,
    *,
    prompt_tokens: int = 32,
    new_tokens: int = 128,
    rounds: int = 5,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Tokens a second of decoding one text, after reading a prompt.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp; or random:SIZE, random weights of a published size.
    prompt_tokens
        Length of the prompt, of random tokens.
    new_tokens
        Tokens to decode in a round.
    rounds
        How often; the medians are shown.
    device
        auto, cpu, cuda, cuda:N or mps.
    dtype
        Format of matrix products.
    json_
        Print one JSON object instead of lines.
    """
    from gpt2.bench.sample import measure
    from gpt2.device import pick_device, pick_dtype
    from gpt2.formats.open import build, open_model
    from gpt2.model import GPT, GPTConfig

    where = pick_device(device)
    kind, _, size = model.partition(":")
    network = GPT(GPTConfig.preset(size)) if kind == "random" else build(open_model(model))
    speed = measure(
        network.to(where),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        dtype=pick_dtype(dtype, where),
    )
    if json_:
        print(json.dumps(asdict(speed)))
        return
    print(
        f"{speed.tokens_per_second:,.1f} tokens/s (median of {rounds}; {speed.slowest:,.1f} to {speed.fastest:,.1f}) "
        f"· weights read at {speed.bytes_per_second / 1e9:,.1f} GB/s"
    )
    print(f"first token after {1000 * speed.seconds_to_first:,.1f} ms, of a prompt of {prompt_tokens} tokens")


@app.command
def data(
    dataset: str,
    /,
    *,
    batch_size: int = 12,
    block_size: int = 1024,
    steps: int = 1000,
    data_order: Literal["random", "shuffled", "sequential"] = "random",
    data_dir: str = "data",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Tokens a second that batches of a dataset are made at.

    Parameters
    ----------
    dataset
        A prepared folder, token files (a folder, file or glob), a name under data_dir, or a corpus.
    batch_size
        Rows of a batch.
    block_size
        Tokens of a row.
    steps
        Batches to make.
    data_order
        As in training.
    data_dir
        Where prepared datasets live.
    json_
        Print one JSON object instead of a line.
    """
    from gpt2.bench.data import measure
    from gpt2.data.dataset import open_dataset

    tokens = open_dataset(dataset, data_dir, note).split("train", block_size)
    speed = measure(tokens, batch_size=batch_size, block_size=block_size, steps=steps, order=data_order)
    if json_:
        print(json.dumps(asdict(speed)))
        return
    print(f"{speed.tokens_per_second:,.0f} tokens/s · {1e6 * speed.seconds:,.0f} µs a batch (median of {steps})")
