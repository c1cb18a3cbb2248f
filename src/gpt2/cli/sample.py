"""`gpt2 sample`."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DeviceArg, DTypeArg, ModelArg, TokenizerArg
from gpt2.runlog.console import note
from gpt2.training.setting import CONTEXT, SAMPLES, SEED, within

if TYPE_CHECKING:
    from gpt2.model import GPT
    from gpt2.tokenizers import Tokenizer

SEPARATOR = "\n---------------"


@dataclass(frozen=True)
class Sampling:
    """The settings of a sample."""

    max_new_tokens: Annotated[int, CONTEXT] = 500
    """Maximum number of tokens in a sample. A sample also ends at end-of-text."""
    temperature: float = 0.8
    """Sampling temperature: a lower one is more predictable, a higher one more varied. 0 always takes the most likely
    token."""
    top_k: Annotated[int, within(0, 10**9)] = 200
    """Sample from this number of most likely tokens. 0 means all tokens."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this number."""


def sample(
    model: ModelArg,
    /,
    *,
    start: str = "",
    num_samples: Annotated[int, SAMPLES] = 1,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),
    seed: Annotated[int, SEED] = 1337,
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
    seed
        Seed of the first sample. The next samples use seed + 1, seed + 2, and so on.
    """
    from gpt2.device import pick_device, pick_dtype
    from gpt2.formats.open import build, open_model
    from gpt2.generation.engine import check_settings, encode_prompt, read_prompt

    SEED.check("seed + num_samples - 1", seed + num_samples - 1)
    check_settings(**asdict(sampling), seed=seed)
    where = pick_device(device)
    prompt = read_prompt(start)
    source = open_model(model, tokenizer)
    encode_prompt(source.tokenizer, prompt)
    for line in (f"model {source.origin}", *source.notes):
        note(line)
    seeds, network = range(seed, seed + num_samples), build(source).to(where)
    print_samples(network, source.tokenizer, prompt, seeds, sampling, pick_dtype(dtype, where))


def print_samples(
    network: "GPT", tokenizer: "Tokenizer", prompt: str, seeds: range, sampling: Sampling, dtype: str
) -> None:
    """Print one continuation of the prompt for each seed."""
    from gpt2.generation.engine import stream_text

    for seed in seeds:
        sys.stdout.write(prompt)
        for piece in stream_text(network, tokenizer, prompt, **asdict(sampling), seed=seed, dtype=dtype):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(SEPARATOR, flush=True)
