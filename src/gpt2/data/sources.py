"""Documents out of files of any kind: text, JSON lines, Parquet, compressed or not, or standard input."""

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from gpt2.data.corpora import CORPORA
from gpt2.errors import UserError, first_line

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".ts", ".java", ".go", ".rs", ".tex"}
STANDARD_INPUT = "/dev/stdin"


def _open_zst(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"reading {path} needs zstandard; pip install zstandard") from None
    return zstandard.open(path, "rb")


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": _open_zst,
}


def find_files(source: str) -> list[Path]:
    """The file `source` itself, or all of a folder that this module reads, by path. Raises UserError for none."""
    path = Path(source)
    if source == STANDARD_INPUT or path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"no corpus, file or folder {source!r}; corpora by name: {', '.join(CORPORA)}; - is standard input"
        )
    files = sorted(p for p in path.rglob("*") if _kind(p) in {*TEXT_SUFFIXES, ".jsonl", ".parquet"} and p.is_file())
    if not files:
        raise UserError(f"{path} holds no text files ({' '.join(sorted(TEXT_SUFFIXES))} .jsonl .parquet)")
    return files


def documents(file: Path, field: str = "text") -> Iterator[str]:
    """The documents of one file, one at a time.

    Of `.jsonl` and `.parquet`, the text in `field` of each row; any other file is one document of UTF-8 text. All but
    `.parquet` may be compressed (.gz, .xz, .bz2, .zst). Raises UserError for what cannot be read, with its line.
    """
    if _kind(file) == ".parquet":
        yield from _parquet(file, field)
        return
    try:
        with closing(_open(file)) as stream:
            if _kind(file) == ".jsonl":
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield _field_of(line, field, f"{file}, line {number}")
            else:
                yield _decoded(stream.read(), str(file))
    except UserError:
        raise
    except Exception as error:  # each decompressor raises its own kinds
        raise UserError(f"{file} cannot be read ({first_line(error)}); fetch it again") from None


def _kind(file: Path) -> str:
    """The suffix that tells what is inside, below that of its compression."""
    return Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix


def _open(file: Path) -> IO[bytes]:
    if str(file) == STANDARD_INPUT:
        return sys.stdin.buffer
    return COMPRESSED[file.suffix](file) if file.suffix in COMPRESSED else file.open("rb")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}); convert it or leave it out") from None


def _field_of(line: bytes, field: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({first_line(error)}); mend the line or leave it out") from None
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        found = ", ".join(sorted(row)[:8]) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: no text in {field!r} (it has {found}); name another with --field")
    try:
        row[field].encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {field!r} is not valid text (half a surrogate pair); leave the line out") from None
    return row[field]


def _parquet(file: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"reading {file} needs pyarrow; pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                found = ", ".join(table.schema_arrow.names[:8])
                raise UserError(f"{file}: no column {field!r} (it has {found}); name another with --field")
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0):
                    if not isinstance(text := value.as_py(), str):
                        raise UserError(f"{file}: column {field!r} holds {type(text).__name__}, not text")
                    yield text
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({first_line(error)}); fetch it again") from None
