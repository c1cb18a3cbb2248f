"""A byte-pair vocabulary of one's own, learned from files, and how it does on text it has not seen."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.data.prepare import find_inputs
from gpt2.data.text import Text
from gpt2.errors import UserError
from gpt2.tokenizers import BPETokenizer, Tokenizer, gpt2_tokenizer, train_bpe

KEPT_OUT = 20
"""Of so many documents, or pieces of long ones, one is not trained on; of fewer, the last part of all characters."""
MEASURED = 10_000_000
"""Characters of the text kept out that are held in memory and measured, at most."""
LONGEST = 10
"""Tokens that the report shows."""


@dataclass(frozen=True)
class TokenizerReport:
    """What came of training a tokenizer."""

    ids: int
    characters: int
    """That were read."""
    measured_bytes: int
    """Of the text kept out of training, on which both tokenizers are measured."""
    bytes_per_token: float
    gpt2_bytes_per_token: float | None
    """None where GPT-2's vocabulary is not to be had."""
    longest_tokens: list[str]
    seconds: float
    """That reading and training took."""

    @property
    def ratio(self) -> float | None:
        """Bytes per token here over those of GPT-2's tokenizer."""
        return self.bytes_per_token / self.gpt2_bytes_per_token if self.gpt2_bytes_per_token else None

    def figures(self) -> dict[str, Any]:
        """All of it as a JSON object."""
        return {**asdict(self), "ratio": self.ratio}


def train_tokenizer(
    *sources: str | Path,
    vocab_size: int = 4096,
    specials: Sequence[str] = (),
    field: str = "text",
    max_characters: int = 1_000_000_000,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[BPETokenizer, TokenizerReport]:
    """Learn a vocabulary of `vocab_size` ids, end-of-text and `specials` among them, from sources as `prepare` has.

    `field` is where rows of files have their text; no more than `max_characters` are read. Every twentieth document,
    or the end of fewer, is kept out of training and measured. `note` receives lines about progress. Raises UserError.
    """
    if max_characters < 1:
        raise UserError(f"max_characters is {max_characters}; it must be at least 1")
    corpus, inputs = find_inputs(sources)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        text = Text(inputs, Path(folder), field, heading=corpus.heading if corpus else None)
        reading = _Reading(_cut(_texts(text, max_characters)))
        tokenizer = train_bpe(reading.training(_texts(text, max_characters)), vocab_size, specials)
    seconds = time.perf_counter() - started
    if not reading.trained or not reading.kept_out:
        raise UserError(f"the text has {reading.characters} characters, too few to train and measure on; give more")
    if tokenizer.vocab_size < vocab_size:
        raise UserError(
            f"the text has {reading.characters} characters, enough for only {tokenizer.vocab_size} ids; give more, "
            f"or --vocab_size={tokenizer.vocab_size}"
        )
    size = sum(len(text.encode()) for text in reading.kept_out)
    try:
        gpt2 = size / _count(gpt2_tokenizer(), reading.kept_out)
    except UserError as error:
        note(f"not compared with GPT-2's tokenizer: {error}")
        gpt2 = None
    longest = sorted(tokenizer.tokens, key=len, reverse=True)[:LONGEST]
    return tokenizer, TokenizerReport(
        ids=tokenizer.vocab_size,
        characters=reading.characters,
        measured_bytes=size,
        bytes_per_token=size / _count(tokenizer, reading.kept_out),
        gpt2_bytes_per_token=gpt2,
        longest_tokens=[token.decode(errors="replace") for token in longest],
        seconds=seconds,
    )


def _texts(text: Text, most: int) -> Iterator[str]:
    """The documents, or pieces of long ones, one at a time, until `most` characters are read."""
    for place, _ in text.read():
        piece = place.piece.text[:most]
        most -= len(piece)
        yield piece
        if not most:
            return


def _cut(texts: Iterator[str]) -> int | None:
    """How many characters are trained on where texts are fewer than `KEPT_OUT`; None where they are not."""
    sizes = [len(text) for text in itertools.islice(texts, KEPT_OUT)]
    return None if len(sizes) == KEPT_OUT else sum(sizes) * (KEPT_OUT - 1) // KEPT_OUT


class _Reading:
    """One pass over the texts, which gives those to train on and keeps the start of the others."""

    def __init__(self, cut: int | None) -> None:
        self.cut = cut
        self.texts = self.characters = self.trained = 0
        self.kept_out: list[str] = []

    def training(self, texts: Iterable[str]) -> Iterator[str]:
        room = MEASURED
        for text in texts:
            self.texts += 1
            if self.cut is None:
                trained = 0 if self.texts % KEPT_OUT == 0 else len(text)
            else:
                trained = max(0, self.cut - self.characters)
            self.characters += len(text)
            head, tail = text[:trained], text[trained:][:room]
            if tail:
                self.kept_out.append(tail)
                room -= len(tail)
            if head:
                self.trained += len(head)
                yield head


def _count(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    return sum(len(tokenizer.encode_array(text)) for text in texts)
