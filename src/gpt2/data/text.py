"""The text of a preparation in its order, and the split of each piece of it."""

import re
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2.data.corpora import Input
from gpt2.data.sources import Piece, Reading, extending_over, joined_at, pieces

GOLDEN = (5**0.5 - 1) / 2
"""Golden ratio, whose multiples modulo 1 are evenly spread for any number of them."""
UNDIVIDED = "all"
"""Split of text whose tokens are divided between train and val when they are written."""


@dataclass(frozen=True)
class Mark:
    """A mark is a position in the text, up to which it has been read."""

    file: int = 0
    """Number of the file being read."""
    pieces: int = 0
    """Number of pieces read from that file."""
    documents: int = 0
    """Number of documents begun, in all files."""
    characters: int = 0
    """Number of characters read, in all files."""
    read: int = 0
    """Number of bytes read, in all files."""
    missing: int = 0
    """Number of rows without text, which are skipped, in all files."""
    separated: int = 0
    """Number of documents that a separator ends, in all files."""


@dataclass(frozen=True)
class LocatedPiece:
    """Holds a piece of text and its location."""

    piece: Piece
    number: int
    """Number of its file."""
    row: int
    """Number of its document in the file."""
    characters: int
    """Number of characters of all text before it."""
    split: str | None
    """Split of its file; None where the file has none."""


class Fetching(threading.Thread):
    """Fetches a file in the background; a daemon, so that stopping the program does not wait for the download."""

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
        """Wait for the file and return its path. Raises the error with which fetching it failed."""
        self.join()
        if self.path is None:
            assert self.error is not None
            raise self.error
        return self.path


@dataclass(frozen=True)
class Text:
    """Describes all the text, or one machine's partition of it."""

    inputs: Sequence[Input]
    folder: Path
    """Folder for downloads."""
    reading: Reading
    heading: re.Pattern[str] | None = None
    """Matches rows that begin a document, where rows are lines of documents."""
    partition: tuple[int, int] = (1, 1)
    """(i, n) for the i-th of n partitions of the files, counted from 1."""

    @property
    def numbers(self) -> range:
        """Return the numbers of the files of this partition."""
        i, n = self.partition
        return range(len(self.inputs) * (i - 1) // n, len(self.inputs) * i // n)

    def size(self) -> int:
        """Return the number of bytes to read in all."""
        inputs = [self.inputs[number] for number in self.numbers]
        return sum(i.size or i.fetch(self.folder).stat().st_size for i in inputs)

    def read(self, mark: Mark | None = None) -> Iterator[tuple[LocatedPiece, Mark]]:
        """Yield every piece after `mark` with its location, and the mark after it. Raises UserError."""
        mark = mark or Mark(file=self.numbers.start)
        skipped, done = mark.pieces, sum(self.inputs[n].size for n in range(self.numbers.start, mark.file))
        for number, path in self._fetched(mark.file):
            found = pieces(path, self.reading)
            row = -1
            for count, piece in enumerate(joined_at(self.heading, found) if self.heading else found, start=1):
                row += piece.starts
                if count <= skipped:
                    continue
                located = LocatedPiece(piece, number, row, mark.characters, self.inputs[number].split)
                mark = Mark(
                    number,
                    count,
                    mark.documents + piece.starts,
                    mark.characters + len(piece.text),
                    done + piece.read,
                    mark.missing + piece.missing,
                    mark.separated + piece.separated,
                )
                yield located, mark
            done += self.inputs[number].size
            skipped = 0

    def _fetched(self, first: int) -> Iterator[tuple[int, Path]]:
        """Yield the files from number `first` on; each is fetched while the file before it is read."""
        ahead = None
        for number in range(first, self.numbers.stop):
            fetching = ahead or Fetching(self.inputs[number], self.folder)
            path = fetching.result()
            ahead = Fetching(self.inputs[number + 1], self.folder) if number + 1 < self.numbers.stop else None
            yield number, path

    def discard(self, number: int) -> None:
        """Delete the download of a file that has been read."""
        if (copy := self.inputs[number].copy) is not None:
            (self.folder / copy).unlink(missing_ok=True)


@dataclass(frozen=True)
class Split:
    """Assigns text to splits by its location alone, so that restarts and partitions agree."""

    fraction: float = 0.0
    """Share of the documents that are for validation, evenly spread."""
    cuts: tuple[tuple[int, int], ...] = ()
    """Offset in characters where a document begins, and offset from which on its text is for validation, for each of
    a few documents; or one pair for all of them together. Empty to split by documents."""
    tokens: int = 0
    """Number of tokens at the beginning that are for validation; 0 to split by text."""
    markers: tuple[str, ...] = ()
    """Special tokens in the text; a cut inside one moves to where it begins."""

    def __call__(self, located: LocatedPiece) -> list[tuple[str, Piece]]:
        """Return the split of a piece, or of its two halves where the cut is inside it."""
        piece = located.piece
        if piece.missing:
            return []
        if located.split is not None:
            return [(located.split, piece)]
        if self.tokens:
            return [(UNDIVIDED, piece)]
        if not self.cuts:
            offset = located.number * GOLDEN % 1  # so that files of one document each are spread as well
            at = offset + located.row * self.fraction
            return [("val" if int(at + self.fraction) > int(at) else "train", piece)]
        _, cut = self.cuts[bisect_right(self.cuts, located.characters, key=lambda pair: pair[0]) - 1]
        before = cut - located.characters
        if before >= len(piece.text):
            return [("train", piece)]
        while inside := [at for marker in self.markers if (at := extending_over(piece.text, marker, before)) >= 0]:
            before = min(inside)
        if before <= 0:
            return [("val", piece)]
        is_apart = len(self.cuts) > 1  # then both halves are documents
        head = replace(piece, text=piece.text[:before], ends=is_apart)
        return [("train", head), ("val", replace(piece, text=piece.text[before:], starts=is_apart))]
