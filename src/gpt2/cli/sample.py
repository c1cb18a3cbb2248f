"""`gpt2 sample`."""

import sys
from typing import TYPE_CHECKING, Any

from gpt2.cli.arguments import DeviceArg, DTypeArg, ModelArg, TokenizerArg
from gpt2.runlog.console import note

if TYPE_CHECKING:
    from gpt2.model import GPT
    from gpt2.tokenizers import Tokenizer

SEPARATOR = "\n---------------"


def sample(
    model: ModelArg,
    /,
    *,
    start: str = "",
    num_samples: int = 1,
    max_new_tokens: int = 500,
    temperature: float = 0.8,
    top_k: int = 200,
    top_p: float = 1.0,
    seed: int = 1337,
    tokenizer: TokenizerArg = None,
    device: DeviceArg = "auto",
    dtype: DTypeArg = "float32",
) -> None:
    """Generate text from a model and print it as it is generated.

    Parameters
    ----------
    start
        Prompt to continue, or FILE:path to read the prompt from a file. An empty prompt starts a new document.
    num_samples
        Number of samples. Each ends with a line of dashes.
    max_new_tokens
        Maximum number of tokens in a sample. A sample also ends at end-of-text.
    temperature
        Sampling temperature: lower is more predictable, higher more varied. 0 always takes the most likely token.
    top_k
        Sample from this number of most likely tokens. 0 means all tokens.
    top_p
        Sample from the most likely tokens whose probabilities add up to this number.
    seed
        Seed of the first sample. The next samples use seed + 1, seed + 2, and so on.
    """
    from gpt2.device import pick_device, pick_dtype
    from gpt2.formats.open import build, open_model
    from gpt2.generation.engine import check_settings, encode_prompt, read_prompt
    from gpt2.training.setting import at_least

    at_least(1).check("num_samples", num_samples)
    check_settings(max_new_tokens, temperature, top_k, top_p, seed)
    where = pick_device(device)
    prompt = read_prompt(start)
    source = open_model(model, tokenizer)
    encode_prompt(source.tokenizer, prompt)
    for line in (f"model {source.origin}", *source.notes):
        note(line)
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "dtype": pick_dtype(dtype, where),
    }
    print_samples(build(source).to(where), source.tokenizer, prompt, range(seed, seed + num_samples), settings)


def print_samples(
    network: "GPT", tokenizer: "Tokenizer", prompt: str, seeds: range, settings: dict[str, Any]
) -> None:
    """Print one continuation of the prompt for each seed, with `settings` as `stream_text` takes them."""
    from gpt2.generation.engine import stream_text

    for seed in seeds:
        sys.stdout.write(prompt)
        for piece in stream_text(network, tokenizer, prompt, seed=seed, **settings):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(SEPARATOR, flush=True)
