"""Trains a byte-pair vocabulary on files, and measures it on held-out text."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.data.inputs import find_inputs
from gpt2.data.sources import Reading, extending_over
from gpt2.data.text import Text
from gpt2.errors import UserError
from gpt2.special_tokens import END_OF_TEXT
from gpt2.spelling import counted
from gpt2.tokenizers import BPETokenizer, Tokenizer, gpt2_tokenizer, require_bpe, train_bpe

HOLD_OUT = 20
"""One in this number of documents, or of pieces of long ones, is held out. From fewer documents, the last of this
number of equal parts of the characters is."""
MEASURED = 10_000_000
"""Largest number of characters of held-out text that are kept in memory and measured."""
LONGEST = 10
"""Number of longest tokens in the report."""


@dataclass(frozen=True)
class TokenizerReport:
    """Describes a trained tokenizer."""

    ids: int
    """Number of ids."""
    characters: int
    """Number of characters read."""
    measured_bytes: int
    """Number of bytes of the held-out text, on which both tokenizers are measured."""
    bytes_per_token: float
    """Average number of bytes of held-out text per token."""
    gpt2_bytes_per_token: float | None
    """The same of GPT-2's tokenizer; None where its vocabulary is not available."""
    longest_tokens: list[str]
    seconds: float
    """Duration of reading and training."""

    @property
    def ratio(self) -> float | None:
        """Return the bytes per token divided by those of GPT-2's tokenizer; None where these are unknown."""
        return self.bytes_per_token / self.gpt2_bytes_per_token if self.gpt2_bytes_per_token else None

    def figures(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {**asdict(self), "ratio": self.ratio}


def train_tokenizer(
    *sources: str | Path,
    vocab_size: int = 4096,
    specials: Sequence[str] = (),
    field: str = "text",
    max_characters: int = 1_000_000_000,
    given: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[BPETokenizer, TokenizerReport]:
    """Learn a vocabulary of `vocab_size` ids, including end-of-text and `specials`, from sources as in `prepare`.

    `field` is the field with the text in rows of files; at most `max_characters` are read. Every twentieth document,
    or the end of a text of fewer, is held out of training and measured. Special tokens in the text, among them
    end-of-text, are neither trained on nor measured. `given` is a local copy of a corpus that would be downloaded.
    `note` receives a line if some of `specials` are not in the text, and one if GPT-2's tokenizer is not available.
    Raises UserError.
    """
    if max_characters < 1:
        raise UserError(f"max_characters is {max_characters}; it must be at least 1")
    require_bpe(vocab_size, specials)  # before the time that reading takes
    corpus, inputs = find_inputs(sources, given=given)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        how = Reading(field, markers=(END_OF_TEXT, *specials) if specials else ())
        text = Text(inputs, Path(folder), how, corpus.heading if corpus else None)
        reading = _Reading(_cut(_texts(text, max_characters)), specials)
        tokenizer = train_bpe(reading.training(_texts(text, max_characters)), vocab_size, specials)
    seconds = time.perf_counter() - started
    pieces = (piece for text in reading.held_out for piece in tokenizer.special.pieces(text, markers=True))
    measured = [piece for piece in pieces if isinstance(piece, str)]
    if not reading.trained or not measured:
        raise UserError(
            f"the text has {counted(reading.characters, 'character')}, too few to train and measure on; give more"
        )
    if tokenizer.vocab_size < vocab_size:
        raise UserError(
            f"the text has {counted(reading.characters, 'character')}, enough for only {tokenizer.vocab_size} ids; "
            f"give more, or --vocab_size={tokenizer.vocab_size}"
        )
    if reading.not_found:
        note(f"not in the text: {', '.join(reading.not_found)}; special tokens are written exactly as in the text")
    size = sum(len(text.encode()) for text in measured)
    try:
        gpt2 = size / _count(gpt2_tokenizer(), measured)
    except UserError as error:
        note(f"not compared with GPT-2's tokenizer: {error}")
        gpt2 = None
    longest = sorted(tokenizer.tokens, key=len, reverse=True)[:LONGEST]
    return tokenizer, TokenizerReport(
        ids=tokenizer.vocab_size,
        characters=reading.characters,
        measured_bytes=size,
        bytes_per_token=size / _count(tokenizer, measured),
        gpt2_bytes_per_token=gpt2,
        longest_tokens=[token.decode(errors="replace") for token in longest],
        seconds=seconds,
    )


def _texts(text: Text, most: int) -> Iterator[str]:
    """Yield the documents, or pieces of long ones, until `most` characters are read."""
    for located, _ in text.read():
        if located.piece.missing:
            continue
        piece = located.piece.text[:most]
        most -= len(piece)
        yield piece
        if not most:
            return


def _cut(texts: Iterator[str]) -> int | None:
    """Return the number of characters to train on where there are fewer than `HOLD_OUT` texts; otherwise None."""
    sizes = [len(text) for text in itertools.islice(texts, HOLD_OUT)]
    return None if len(sizes) == HOLD_OUT else sum(sizes) * (HOLD_OUT - 1) // HOLD_OUT


class _Reading:
    """Passes over the texts once: yields those to train on, and keeps the beginning of the others."""

    def __init__(self, cut: int | None, specials: Sequence[str]) -> None:
        self.cut, self.specials, self.not_found = cut, specials, list(specials)
        self.texts = self.characters = self.trained = 0
        self.held_out: list[str] = []

    def training(self, texts: Iterable[str]) -> Iterator[str]:
        space = MEASURED
        for text in texts:
            self.texts += 1
            self.not_found = [special for special in self.not_found if special not in text]
            if self.cut is None:
                trained = 0 if self.texts % HOLD_OUT == 0 else len(text)
            else:
                trained = max(0, self.cut - self.characters)
                cut_through = (extending_over(text, special, trained) for special in self.specials)
                trained = min([trained, *(at for at in cut_through if at >= 0)])
            self.characters += len(text)
            head, tail = text[:trained], text[trained:][:space]
            if tail:
                self.held_out.append(tail)
                space -= len(tail)
            if head:
                self.trained += len(head)
                yield head


def _count(tokenizer: Tokenizer, texts: Iterable[str]) -> int:
    return sum(len(tokenizer.encode_array(text)) for text in texts)
