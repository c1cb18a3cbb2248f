"""The load that a server is measured with: when its requests arrive, and how long prompts and answers are."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpt2.bench.http_client import Address
from gpt2.errors import UserError, require

MOST_CHARACTERS = 1 << 24
"""Maximum number of characters that are read of a file."""


class Lengths(NamedTuple):
    """The numbers of tokens that prompts and answers have."""

    draw: Callable[[random.Random], tuple[int, int]]
    """Returns those of a request."""
    longest: int
    """The largest number of tokens of a prompt."""


def ranges(prompt: tuple[int, int], new: tuple[int, int]) -> Lengths:
    """Return lengths that are drawn evenly from two ranges, ends included. Raises UserError for an empty range."""
    for name, (least, most) in {"prompt_tokens": prompt, "new_tokens": new}.items():
        require(1 <= least <= most, f"{name} is {least} {most}; it must be the least number, then the largest")
    return Lengths(lambda rng: (rng.randint(*prompt), rng.randint(*new)), prompt[1])


def lengths_in(path: Path) -> Lengths:
    """Return lengths that are drawn from the lines of a file, JSON objects with `prompt_tokens` and `new_tokens`.

    Raises UserError for a file that cannot be read or has another line.
    """
    pairs = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            pair = values["prompt_tokens"], values["new_tokens"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pair = ()
        if not pair or not all(type(count) is int and count >= 1 for count in pair):
            example = '{"prompt_tokens": 100, "new_tokens": 20}'
            raise UserError(f"{path}, line {number}: this is no pair of lengths; write lines such as {example}")
        pairs.append(pair)
    require(bool(pairs), f"{path} has no lengths; give a file with some")
    return Lengths(lambda rng: rng.choice(pairs), max(prompt for prompt, _ in pairs))


def words_in(path: Path) -> list[str]:
    """Return the words of a text. Raises UserError for a file that cannot be read or has none."""
    words = _text(path).split()
    require(bool(words), f"{path} has no words; give a file with text")
    return words


def _text(path: Path) -> str:
    """Return the beginning of a text file. Raises UserError."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MOST_CHARACTERS)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({getattr(error, 'strerror', None) or 'it is not UTF-8'})") from None


@dataclass(frozen=True)
class Load:
    """Says which requests a server gets. Request i depends on the seed and on i alone."""

    address: Address
    lengths: Lengths
    words: Sequence[str] = ()
    """Text of the prompts; without any, prompts are random token ids."""
    vocab_size: int = 50257
    """Number of different token ids in prompts."""
    model: str | None = None
    """Name of the model; None for the first one that the server lists."""
    rate: float | None = None
    """Mean number of requests per second, which arrive as a Poisson process, however long the answers take."""
    concurrency: int | None = None
    """Number of clients, each of which sends its next request after the answer to its last one."""
    requests: int | None = None
    seconds: float | None = None
    """How long requests are sent. One of these two is None, and one of the two above."""
    cancel: float = 0.0
    """Share of requests whose client closes the connection after a random number of tokens."""
    slow: float = 0.0
    """Share of requests whose client reads slowly."""
    timeout: float = 600.0
    """Seconds that an answer may take."""
    temperature: float = 1.0
    """Temperature of the answers. At 0 a request names no seed, which not every server takes."""
    seed: int = 0

    def __post_init__(self) -> None:
        require((self.rate is None) != (self.concurrency is None), "give either rate or concurrency")
        require((self.requests is None) != (self.seconds is None), "give either requests or seconds")


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield the times of a Poisson process in seconds, of which there are `rate` per second on average."""
    rng, at = random.Random(f"{seed}/arrivals"), 0.0
    while True:
        at += rng.expovariate(rate)
        yield at
