"""Reads documents from text, JSON, CSV and Parquet, compressed or not, one piece at a time."""

import bz2
import codecs
import functools
import gzip
import io
import lzma
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

from gpt2.chat import conversation
from gpt2.data.content import check_is_text
from gpt2.data.rows import ROW_SUFFIXES, read_parquet, read_rows
from gpt2.errors import UserError, first_line
from gpt2.special_tokens import END_OF_TEXT
from gpt2.spelling import counted

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".ts", ".java", ".go", ".rs", ".tex"}
BYTE_ORDER_MARK = "\ufeff"
STANDARD_INPUT = "/dev/stdin"
CHUNK = 1 << 20
"""Approximate number of characters of a piece; a longer document is read in several pieces."""
MAX_CHUNK = 1 << 24
"""Largest number of characters without a possible cut, for which tiktoken needs about a gigabyte."""
HEAD = 4096
"""Approximate number of bytes by which the kind of content is recognised."""
LAST_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)
"""Matches up to the last offset at which GPT-2's pre-split always cuts: between a character and white space."""
_PUNCTUATION = r"!-&(-/:-@\[-`{-~、。〈-】！（），．：；？“”…—"
FURTHER_CUT = re.compile(
    rf".+(?:(?<=\S)(?=[\t\r\u3000])|(?<=[^\W_])(?=[{_PUNCTUATION}])|(?<=[{_PUNCTUATION}])(?=[^\W_])"
    r"|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z]))",
    re.DOTALL,
)
"""Matches up to further offsets at which it always cuts, for text without spaces: between a letter or a digit and
punctuation, except for the apostrophe, and between a letter and a digit."""
_TOKENS = "token files, which are not prepared again; train on them with --dataset=FOLDER"
NO_TEXT = {
    ".arrow": "those of Hugging Face's datasets; write each split as Parquet first, in Python: "
    "datasets.load_from_disk('FOLDER') and then to_parquet('train.parquet')",
    ".bin": _TOKENS,
    ".npy": _TOKENS,
}
"""What files with a suffix are in a folder without text, and what to do."""
OMITTED_FOLDERS = {"__MACOSX"}


@dataclass(frozen=True)
class Piece:
    """A piece is a document, or a section of a long document."""

    text: str
    starts: bool = True
    """Whether a document begins with this piece."""
    ends: bool = True
    """Whether the document ends with this piece."""
    read: int = 0
    """Number of bytes read from the file so far, compressed bytes if it is compressed."""
    separated: bool = False
    """Whether a separator ends the document, with this piece."""
    missing: bool = False
    """Whether this stands for a row without text, which is skipped; then it neither starts nor ends a document."""


def _open_zst(file: BinaryIO) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError("reading .zst needs zstandard; pip install zstandard") from None
    return io.BufferedReader(zstandard.open(file, "rb"))  # zstandard offers no readline


COMPRESSED: dict[str, Callable[[Any], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": _open_zst,
}


def find_files(source: str, note: Callable[[str], None] = lambda line: None) -> list[Path]:
    """Return the file `source` itself, or all files in a folder that this module reads, sorted by path.

    `note` receives a line about each kind of omission: hidden files and folders, files of other kinds (they can be
    named one by one), and folders that cannot be read. Raises UserError where there is nothing to read.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise UserError(f"{source} is a pipe or a device; pipe its text into `gpt2 prepare -`, or write it to a file")
    if not path.is_dir():
        raise UserError(f"no file or folder {source!r} with text to read")
    everything, hidden, unreadable = _walk(path)
    kinds = {*TEXT_SUFFIXES, ".jsonl", ".parquet"}
    files = sorted(p for p in everything if _kind(p) in kinds and p.is_file())
    for error in unreadable:
        note(f"{error.filename} cannot be read ({error.strerror}) and is omitted")
    if hidden:
        names = ", ".join(sorted(set(hidden))[:4])
        note(f"{path}: {len(hidden)} hidden files and folders are omitted ({names})")
    if not files:
        for suffix, remedy in NO_TEXT.items():
            if any(p.suffix == suffix for p in everything):
                raise UserError(f"{path} holds no text files but {remedy}".replace("FOLDER", str(path)))
        raise UserError(
            f"{path} holds no text files ({' '.join(sorted(TEXT_SUFFIXES))} .jsonl .parquet); files of other names "
            "can be named one by one"
        )
    if len(files) < len(everything):
        note(f"{path}: {counted(len(everything) - len(files), 'file')} of other kinds omitted")
    return files


def _walk(folder: Path) -> tuple[list[Path], list[str], list[OSError]]:
    """Return all files below a folder, the names of what is hidden, and the errors of folders that cannot be read."""
    files: list[Path] = []
    hidden: list[str] = []
    unreadable: list[OSError] = []
    for parent, folders, names in os.walk(folder, onerror=unreadable.append):
        omitted = {name for name in [*folders, *names] if name.startswith(".")} | OMITTED_FOLDERS & {*folders}
        hidden += omitted
        folders[:] = sorted(set(folders) - omitted)
        files += [Path(parent, name) for name in names if name not in omitted]
    return files, hidden, unreadable


@dataclass(frozen=True)
class Reading:
    """Says how files are read as documents, and where documents are cut into pieces."""

    field: str = "text"
    """Field of a row that has the text; a dot leads to a field inside of another."""
    separator: str | None = None
    """Text that ends a document in files without rows; None where each file is one document."""
    end: str = END_OF_TEXT
    """The separator that stands for a token, and does not stay in the text."""
    markers: tuple[str, ...] = ()
    """Special tokens in the text, which no cut divides."""
    chunk: int = CHUNK
    """Approximate number of characters of a piece."""
    anywhere: bool = False
    """Whether text may be cut between any two characters, apart from `markers`."""
    is_chat: bool = False
    """Whether the field of a row holds the messages of a conversation, which become its text."""
    words: frozenset[str] = frozenset()
    """Those of `markers` that are words, which a message may contain."""


def pieces(file: Path, reading: Reading = Reading()) -> Iterator[Piece]:
    """Yield the documents of one file in order, each in one piece or, if it is long, in several.

    A document of `.jsonl`, `.json`, `.csv`, `.tsv` and `.parquet` is the text in a field of a row. Any other file is
    UTF-8 text: one document, or with a separator the documents that end with it. The separator stays in the text,
    except `reading.end`. All but `.parquet` may be compressed (.gz, .xz, .bz2, .zst). Pieces are cut where no token
    of GPT-2's BPE can extend over the cut, or anywhere if `reading` allows it and there is no such offset. Raises
    UserError for content that cannot be read, with its line.
    """
    cutting, field = _Cutting(file, reading), reading.field
    unsaid = [marker for marker in reading.markers if marker not in reading.words]
    to_text = functools.partial(conversation, markers=unsaid) if reading.is_chat else None
    kind = _kind(file)
    try:
        if kind == ".parquet":
            yield from _rows(read_parquet(file, field, to_text), cutting)
            return
        with file.open("rb") as raw:
            stream = uncompress(raw) if (uncompress := _compression(file)) else raw
            check_is_text(stream.peek(HEAD), file)
            if has_rows(file):
                yield from _rows(read_rows(stream, raw, file, kind, field, to_text), cutting)
            else:
                yield from _documents(_decoded(stream, raw, file, min(reading.chunk, CHUNK)), cutting)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); change its permissions or omit it") from None
    except Exception as error:  # each decompressor raises its own kinds
        raise UserError(f"{file} cannot be read ({first_line(error)}); fetch it again") from None


def has_rows(file: Path) -> bool:
    """Return whether a file has rows with fields, by its name."""
    return _kind(file) in ROW_SUFFIXES


def _kind(file: Path) -> str:
    """Return the suffix that tells the kind of content, without the suffix of the compression."""
    suffix = (Path(file.stem).suffix if _compression(file) else file.suffix).lower()
    return ".jsonl" if suffix == ".ndjson" else suffix


def _compression(file: Path) -> Callable[[Any], Any] | None:
    """Return the function that decompresses the file; None where it is not compressed."""
    return COMPRESSED.get(file.suffix.lower())


@dataclass(frozen=True)
class _Cutting:
    """Determines where the text of a file is cut into pieces."""

    file: Path
    reading: Reading

    @property
    def chunk(self) -> int:
        return self.reading.chunk

    @property
    def longest_marker(self) -> int:
        """Return the number of characters of the longest marker, at least 1."""
        return max(map(len, self.reading.markers), default=1)

    def last(self, text: str, begin: int, end: int) -> int:
        """Return the last offset in `text[begin:end]` at which the text can be cut; 0 where there is none.

        No marker that is complete in `text` extends over the offset.
        """
        while found := self._last(text, begin, end):
            inside = [at for marker in self.reading.markers if (at := extending_over(text, marker, found)) >= 0]
            if not inside:
                return found
            end = min(inside)
        return 0

    def _last(self, text: str, begin: int, end: int) -> int:
        if end <= begin:
            return 0
        if found := LAST_CUT.match(text, begin, end):
            return found.end()
        if self.reading.anywhere:
            return end
        return found.end() if (found := FURTHER_CUT.match(text, begin, end)) else 0

    def check(self, length: int) -> None:
        """Raise UserError for text that is too long without a cut."""
        if length > max(MAX_CHUNK, self.chunk):
            raise UserError(
                f"{self.file} has {length:,} characters in a row without white space or punctuation, too many for a "
                "BPE; use --tokenizer=byte or --tokenizer=char"
            )


def extending_over(text: str, marker: str, offset: int) -> int:
    """Return where a marker begins that begins before `offset` and ends after it; -1 where there is none."""
    return text.find(marker, max(offset - len(marker) + 1, 0), offset + len(marker) - 1)


def _rows(rows: Iterator[tuple[str | None, int]], cutting: _Cutting) -> Iterator[Piece]:
    for text, read in rows:
        if text is None:
            yield Piece("", starts=False, ends=False, read=read, missing=True)
        else:
            yield from _pieces_of(text, read, cutting)


def _pieces_of(text: str, read: int, cutting: _Cutting) -> Iterator[Piece]:
    """Yield the pieces of a document in memory, of which there are several if it is long."""
    begin = searched = 0
    end = cutting.chunk
    while end < len(text):
        if cut := cutting.last(text, searched, end):
            yield Piece(text[begin:cut], begin == 0, False, read)
            begin = searched = cut
            end = begin
        else:
            cutting.check(end - begin)
            searched = end - 1
        end += cutting.chunk
    cutting.check(len(text) - begin)
    yield Piece(text[begin:], begin == 0, True, read)


def _decoded(stream: IO[bytes], raw: IO[bytes], file: Path, size: int) -> Iterator[tuple[str, int]]:
    """Yield the text of a UTF-8 stream, `size` bytes at a time, and the number of bytes read. Raises UserError.

    The byte order mark that Windows puts before a text is not part of it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    while True:
        block = stream.read(size)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = done - pending + error.start
            raise UserError(f"{file} is not UTF-8 text (byte {at}); convert it or omit it") from None
        if not done:
            text = text.removeprefix(BYTE_ORDER_MARK)
        yield text, raw.tell()
        if not block:
            return
        done += len(block)


def _documents(texts: Iterator[tuple[str, int]], cutting: _Cutting) -> Iterator[Piece]:
    """Yield the document that a text is, or with a separator the documents that end with it."""
    separator = cutting.reading.separator
    held, starts, searched, read = "", True, 0, 0
    kept = "" if separator == cutting.reading.end else separator or ""
    # The last characters can be the beginning of a separator or a marker.
    unknown = max(len(separator or "x"), cutting.longest_marker) - 1
    for text, read in texts:
        *documents, held = (held + text).split(separator) if separator else [held + text]
        for document in documents:
            for piece in _pieces_of(document + kept, read, cutting):
                yield replace(piece, starts=piece.starts and starts, separated=piece.ends)
            starts, searched = True, 0
        end = len(held) - unknown
        if end > cutting.chunk:
            if cut := cutting.last(held, searched, end):
                yield Piece(held[:cut], starts, False, read)
                held, starts, searched = held[cut:], False, 0
            else:
                searched = end - 1
                cutting.check(len(held))
    if held or not starts or not separator:
        yield Piece(held, starts, True, read)


def joined_at(heading: re.Pattern[str], rows: Iterator[Piece]) -> Iterator[Piece]:
    """Yield rows that are single lines as pieces of documents, each of which begins with a `heading`."""
    held = None
    for row in (row for row in rows if row.text):
        starts = held is None or bool(heading.fullmatch(row.text))
        if held is not None:
            yield replace(held, ends=starts)
        held = replace(row, starts=starts)
    if held is not None:
        yield replace(held, ends=True)
