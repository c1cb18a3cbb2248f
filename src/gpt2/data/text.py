"""The text of a preparation in its order, and which split each piece of it goes to."""

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2.data.corpora import Input
from gpt2.data.sources import CHUNK, Piece, joined_at, pieces

GOLDEN = (5**0.5 - 1) / 2
"""Whose multiples fill the unit interval evenly, however many are taken."""
UNDIVIDED = "all"
"""Of text whose tokens are divided when they are written."""


@dataclass(frozen=True)
class Mark:
    """How far reading has come."""

    file: int = 0
    """Number of the file being read."""
    pieces: int = 0
    """Pieces taken from it."""
    documents: int = 0
    characters: int = 0
    read: int = 0
    """Bytes of all files."""


@dataclass(frozen=True)
class Place:
    """A piece of text and where it is."""

    piece: Piece
    number: int
    """Of its file."""
    row: int
    """Of its document in the file."""
    characters: int
    """Of all text before it."""
    split: str | None
    """The split of its file, where that has one."""


class Fetching(threading.Thread):
    """A file on its way. A daemon, so that nobody who stops the program waits for gigabytes."""

    def __init__(self, wanted: Input, folder: Path) -> None:
        super().__init__(daemon=True)
        self.wanted, self.folder = wanted, folder
        self.path: Path | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.path = self.wanted.fetch(self.folder)
        except BaseException as error:
            self.error = error

    def result(self) -> Path:
        """Where the file is, once it is there. Raises what fetching it raised."""
        self.join()
        if self.path is None:
            assert self.error is not None
            raise self.error
        return self.path


@dataclass(frozen=True)
class Text:
    """All the text, or one machine's part of it."""

    inputs: Sequence[Input]
    folder: Path
    """Where files are downloaded to."""
    field: str = "text"
    separator: str | None = None
    heading: re.Pattern[str] | None = None
    chunk: int = CHUNK
    part: tuple[int, int] = (1, 1)

    @property
    def numbers(self) -> range:
        """Which of the files are this part's."""
        i, n = self.part
        return range(len(self.inputs) * (i - 1) // n, len(self.inputs) * i // n)

    def size(self) -> int:
        """Bytes to read in all."""
        mine = [self.inputs[number] for number in self.numbers]
        return sum(i.size or i.fetch(self.folder).stat().st_size for i in mine)

    def read(self, mark: Mark | None = None) -> Iterator[tuple[Place, Mark]]:
        """Every piece from `mark` on, in its place, and the mark behind it. Raises UserError."""
        mark = mark or Mark(file=self.numbers.start)
        skipped, done = mark.pieces, sum(self.inputs[n].size for n in range(self.numbers.start, mark.file))
        for number, path in self._fetched(mark.file):
            found = pieces(path, self.field, self.separator, self.chunk)
            row = -1
            for count, piece in enumerate(joined_at(self.heading, found) if self.heading else found, start=1):
                row += piece.starts
                if count <= skipped:
                    continue
                place = Place(piece, number, row, mark.characters, self.inputs[number].split)
                documents, characters = mark.documents + piece.starts, mark.characters + len(piece.text)
                mark = Mark(number, count, documents, characters, done + piece.read)
                yield place, mark
            done += self.inputs[number].size
            skipped = 0

    def _fetched(self, first: int) -> Iterator[tuple[int, Path]]:
        """The files from number `first` on, each fetched while the one before it is read."""
        ahead = None
        for number in range(first, self.numbers.stop):
            fetching = ahead or Fetching(self.inputs[number], self.folder)
            path = fetching.result()
            ahead = Fetching(self.inputs[number + 1], self.folder) if number + 1 < self.numbers.stop else None
            yield number, path

    def discard(self, number: int) -> None:
        """Delete what was downloaded of a file that has been read."""
        if (copy := self.inputs[number].copy) is not None:
            (self.folder / copy).unlink(missing_ok=True)


@dataclass(frozen=True)
class Split:
    """Which split text goes to: a function of its place alone, so that restarts and parts agree."""

    fraction: float = 0.0
    """Share of the documents for validation: every so-manieth."""
    cut: int | None = None
    """Characters after which all is for validation."""
    tokens: int = 0
    """The first tokens are for validation."""

    def __call__(self, place: Place) -> list[tuple[str, Piece]]:
        piece = place.piece
        if place.split is not None:
            return [(place.split, piece)]
        if self.tokens:
            return [(UNDIVIDED, piece)]
        if self.cut is None:
            offset = place.number * GOLDEN % 1  # so that files of one document each are spread as well
            at = offset + place.row * self.fraction
            return [("val" if int(at + self.fraction) > int(at) else "train", piece)]
        before = self.cut - place.characters
        if before >= len(piece.text):
            return [("train", piece)]
        if before <= 0:
            return [("val", piece)]
        head, tail = piece.text[:before], piece.text[before:]
        return [("train", replace(piece, text=head, ends=False)), ("val", replace(piece, text=tail, starts=False))]
