"""Reads documents from text, JSON lines and Parquet, compressed or not, one piece at a time."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO

from gpt2.errors import UserError, first_line
from gpt2.special_tokens import END_OF_TEXT

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".ts", ".java", ".go", ".rs", ".tex"}
BYTE_ORDER_MARK = "\ufeff"
STANDARD_INPUT = "/dev/stdin"
CHUNK = 1 << 20
"""Approximate number of characters of a piece; a longer document is read in several pieces."""
MAX_CHUNK = 1 << 24
"""Largest number of characters without a possible cut. More than that is not text, and memory is bounded."""
MAX_LINE = 1 << 27
"""Largest number of bytes of a line of JSON."""
LAST_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)
"""Matches up to the last offset at which GPT-2's pre-split always cuts: between a character and white space."""


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

    `note` receives a line about other files in the folder, which are omitted; they can be named one by one. Raises
    UserError where there is nothing to read.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no file or folder {source!r} with text to read")
    everything = [p for p in path.rglob("*") if p.is_file()]
    files = sorted(p for p in everything if _kind(p) in {*TEXT_SUFFIXES, ".jsonl", ".parquet"})
    if not files:
        raise UserError(f"{path} holds no text files ({' '.join(sorted(TEXT_SUFFIXES))} .jsonl .parquet)")
    if len(files) < len(everything):
        note(f"{path}: {len(everything) - len(files)} files of other kinds are omitted")
    return files


def pieces(file: Path, field: str = "text", separator: str | None = None, chunk: int = CHUNK) -> Iterator[Piece]:
    """Yield the documents of one file in order, each in one piece or in pieces of about `chunk` characters.

    A document of `.jsonl` and `.parquet` is the text in `field` of a row. Any other file is UTF-8 text: one document,
    or with a `separator` the documents that end with it. The separator stays in the text, except `<|endoftext|>`,
    which stands for its token. All but `.parquet` may be compressed (.gz, .xz, .bz2, .zst). Pieces are cut where no
    token of GPT-2's BPE can extend over the cut. Raises UserError for unreadable content, with its line.
    """
    if _kind(file) == ".parquet":
        for text, read in _parquet(file, field):
            yield from _pieces_of(text, read, chunk)
        return
    try:
        with file.open("rb") as raw:
            stream = uncompress(raw) if (uncompress := _compression(file)) else raw
            if _kind(file) == ".jsonl":
                for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE), b""), start=1):
                    if line.strip():
                        yield from _pieces_of(_field_of(line, field, f"{file}, line {number}"), raw.tell(), chunk)
            else:
                texts = _decoded(stream, raw, file, min(chunk, CHUNK))
                documents = _separated(texts, separator, chunk, file) if separator else _running(texts, chunk, file)
                yield from documents
    except UserError:
        raise
    except Exception as error:  # each decompressor raises its own kinds
        raise UserError(f"{file} cannot be read ({first_line(error)}); fetch it again") from None


def _kind(file: Path) -> str:
    """Return the suffix that tells the kind of content, without the suffix of the compression."""
    suffix = (Path(file.stem).suffix if _compression(file) else file.suffix).lower()
    return ".jsonl" if suffix == ".ndjson" else suffix


def _compression(file: Path) -> Callable[[Any], Any] | None:
    """Return the function that decompresses the file; None where it is not compressed."""
    return COMPRESSED.get(file.suffix.lower())


def _pieces_of(text: str, read: int, chunk: int) -> Iterator[Piece]:
    """Yield the pieces of a document in memory, of which there are several if it is long."""
    starts = True
    while len(text) > chunk and (cut := _last_cut(text[:chunk])):
        yield Piece(text[:cut], starts, False, read)
        text, starts = text[cut:], False
    yield Piece(text, starts, True, read)


def _last_cut(text: str) -> int:
    """Return the last offset at which text can be cut without changing its tokens; 0 where there is none."""
    found = LAST_CUT.match(text)
    return found.end() if found else 0


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


def _running(texts: Iterator[tuple[str, int]], chunk: int, file: Path) -> Iterator[Piece]:
    """Yield the pieces of one long document."""
    held, starts, read, searched = "", True, 0, 0
    for text, read in texts:
        held += text
        if len(held) > chunk:
            cut = _last_cut(held[searched:])
            if cut:
                yield Piece(held[: searched + cut], starts, False, read)
                held, starts, searched = held[searched + cut :], False, 0
            else:
                searched = len(held) - 1
        if len(held) > max(MAX_CHUNK, chunk):
            raise UserError(f"{file} has {len(held):,} characters without a space or a line's end; is it text?")
    yield Piece(held, starts, True, read)


def _separated(texts: Iterator[tuple[str, int]], separator: str, chunk: int, file: Path) -> Iterator[Piece]:
    """Yield the documents of a text, each of which ends with `separator`."""
    held, read = "", 0
    kept = "" if separator == END_OF_TEXT else separator
    for text, read in texts:
        *documents, held = (held + text).split(separator)
        for document in documents:
            yield from _pieces_of(document + kept, read, chunk)
        if len(held) > MAX_CHUNK:
            raise UserError(f"{file} has {len(held):,} characters without {separator!r}; omit --separator")
    if held:
        yield from _pieces_of(held, read, chunk)


def _field_of(line: bytes, field: str, where: str) -> str:
    if len(line) == MAX_LINE:
        raise UserError(f"{where}: longer than {MAX_LINE:,} bytes; is it JSON lines?")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({first_line(error)}); fix the line or remove it") from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        if isinstance(row, dict) and field in row:
            raise UserError(f"{where}: {field!r} is {_what(row[field])}, not text; remove the line")
        found = ", ".join(sorted(row)[:8]) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: no text in {field!r} (it has {found}); name another with --field")
    try:
        row[field].encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {field!r} is not valid text (half a surrogate pair); remove the line") from None
    return row[field]


def _what(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _parquet(file: Path, field: str) -> Iterator[tuple[str, int]]:
    """Yield the texts of a table, and an estimate of the number of bytes read so far."""
    import pyarrow
    import pyarrow.parquet

    size = file.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                found = ", ".join(table.schema_arrow.names[:8])
                raise UserError(f"{file}: no column {field!r} (it has {found}); name another with --field")
            rows = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for row, value in enumerate(batch.column(0), start=rows + 1):
                    if not isinstance(text := value.as_py(), str):
                        raise UserError(f"{file}, row {row}: {field!r} is {_what(text)}, not text; remove the row")
                    yield text, size * rows // table.metadata.num_rows
                rows += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({first_line(error)}); fetch it again") from None


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
