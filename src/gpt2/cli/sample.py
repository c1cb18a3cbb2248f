"""`gpt2 sample`."""

import sys
from typing import Literal

from gpt2.errors import UserError
from gpt2.runlog.console import note


def sample(
    model: str,
    /,
    *,
    start: str = "",
    num_samples: int = 1,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    seed: int = 1337,
    tokenizer: str | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Generate text from a model, shown as it comes.

    Parameters
    ----------
    model
        A run folder (its best checkpoint), a checkpoint, a Hugging Face folder or name, or a model file of
        nanoGPT, build-nanogpt, llm.c or llama.cpp.
    start
        Text to continue, or FILE:path to read it from. Empty starts a new document.
    num_samples
        How many texts; each ends with a line of dashes.
    max_new_tokens
        Longest text in tokens; it also ends at end-of-text.
    temperature
        Below 1 is safer, above 1 wilder; 0 takes the likeliest token each time.
    top_k
        Choose among this many likeliest tokens; 0 is no limit.
    top_p
        Choose among the likeliest tokens that together have this probability.
    seed
        Seed of the first text; the next ones count up.
    tokenizer
        Tokenizer of a model that brings none: gpt2, byte, or the folder of a dataset or a model.
    device
        auto, cpu, cuda, cuda:N or mps.
    dtype
        Format of matrix products.
    """
    from gpt2.device import pick_device, pick_dtype
    from gpt2.formats.open import build, open_model
    from gpt2.generation.engine import check_settings, encode_prompt, read_prompt, stream_text

    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be at least 1")
    check_settings(max_new_tokens, temperature, top_k, top_p, seed)
    where = pick_device(device)
    prompt = read_prompt(start)
    source = open_model(model, tokenizer)
    encode_prompt(source.tokenizer, prompt)
    for line in (f"model {source.origin}", *source.notes):
        note(line)
    network = build(source).to(where)
    for i in range(num_samples):
        sys.stdout.write(prompt)
        for piece in stream_text(
            network,
            source.tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + i,
            dtype=pick_dtype(dtype, where),
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print("\n---------------", flush=True)
