"""The speed of decoding, alone and in batches, compared with how fast this machine reads memory."""

import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.device import peak_memory, synchronize
from gpt2.errors import UserError
from gpt2.formats.open import open_model
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.weights import Quantize, for_decoding, read_for_decoding, stored_bytes, use_large_pages
from gpt2.model import GPT, GPTConfig
from gpt2.training.setting import CONTEXT, SAMPLES, at_least

READ_BYTES = 2**29
"""Size of the matrix whose reading is timed; it fits into no cache."""


@dataclass(frozen=True)
class DecodingSpeed:
    """The speed of decoding one batch of texts, over several rounds."""

    batch_size: int
    """Number of texts that are decoded together."""
    tokens_per_second: float
    """Speed of the median round, of all texts together, after their first tokens."""
    slowest: float
    """Tokens per second of the slowest round."""
    fastest: float
    """Tokens per second of the fastest round."""
    seconds_to_first: float
    """Median time from the prompts to the last of the first tokens."""
    seconds_per_token: float
    """Median time between two tokens of a text."""
    bytes_per_second: float
    """Bytes of the stored weights, read once per step, times steps per second."""
    memory: int
    """Peak memory in bytes until then: of tensors on a GPU, of the process on a CPU."""


def open_network(model: str, device: torch.device, dtype: str, quantize: Quantize) -> GPT:
    """Open a model to decode with, by path or name, or make one of random weights for `random:SIZE`.

    Raises UserError.
    """
    kind, _, size = model.partition(":")
    if kind == "random":
        return for_decoding(GPT(GPTConfig.preset(size)).to(device), dtype, quantize)
    return read_for_decoding(open_model(model), device, dtype, quantize)


def measure(model: GPT, *, prompt_tokens: int, new_tokens: int, rounds: int, batch_size: int = 1) -> DecodingSpeed:
    """Decode `new_tokens` greedily after `batch_size` prompts of random tokens, in `rounds` rounds after a warmup.

    Nothing is guessed: a step is a token of each text.

    Raises UserError for numbers that are too small to measure, and where prompt and new tokens do not fit the model's
    context.
    """
    CONTEXT.check("prompt_tokens", prompt_tokens)
    at_least(2).check("new_tokens", new_tokens)
    SAMPLES.check("rounds", rounds)
    SAMPLES.check("batch_size", batch_size)
    if prompt_tokens + new_tokens > (context := model.config.block_size):
        raise UserError(
            f"prompt_tokens={prompt_tokens} and new_tokens={new_tokens} are more than the model's {context} positions"
        )
    was_training = model.training
    model.eval()
    engine = Engine(model, slots=batch_size, capacity=prompt_tokens + new_tokens, guess=False)
    generator = torch.Generator().manual_seed(0)
    shape = (rounds + 1, batch_size, prompt_tokens)
    prompts = torch.randint(model.config.vocab_size, shape, generator=generator).tolist()
    timed = [_decode(engine, batch, new_tokens) for batch in prompts][1:]
    model.train(was_training)
    firsts, rates = zip(*timed, strict=True)
    rate = statistics.median(rates)
    return DecodingSpeed(
        batch_size=batch_size,
        tokens_per_second=rate,
        slowest=min(rates),
        fastest=max(rates),
        seconds_to_first=statistics.median(firsts),
        seconds_per_token=batch_size / rate,
        bytes_per_second=stored_bytes(model) * rate / batch_size,
        memory=peak_memory(engine.device),
    )


def _decode(engine: Engine, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
    """Decode once; return the seconds until every text has a token, and the tokens per second after that."""
    synchronize(engine.device)
    began = time.perf_counter()
    for prompt in prompts:
        engine.submit(Request(prompt, new_tokens, Sampling(temperature=0)))
    without_token, n_before = len(prompts), 0
    while without_token:
        tokens = engine.step()
        n_before += len(tokens)
        without_token -= sum(token.index == 0 for token in tokens)
    first = time.perf_counter()
    n_after = sum(1 for _ in engine.run())
    return first - began, n_after / max(time.perf_counter() - first, 1e-9)


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second at which a device reads memory: the best of forty times that it reads a matrix.

    Half of them are products with a vector, and half look for the largest number; the device decides which is faster.
    """
    vector = torch.ones(1024, device=device)
    matrix = torch.ones(READ_BYTES // 4 // len(vector), len(vector), device=device)
    use_large_pages(matrix)
    seconds = []
    for read in (lambda: torch.mv(matrix, vector), matrix.amax) * 20:
        synchronize(device)
        began = time.perf_counter()
        read()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return READ_BYTES / min(seconds)
