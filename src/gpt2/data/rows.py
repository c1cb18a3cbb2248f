"""Reads the texts of files of rows: JSON lines, JSON arrays, CSV and Parquet."""

import codecs
import csv
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from gpt2.errors import UserError, first_line

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_LINE = 1 << 27
"""Largest number of bytes of a line of JSON, and of characters of a field of CSV."""
MAX_JSON = 1 << 28
"""Largest number of bytes of a JSON array, which must be read completely before its first row is known."""
MAX_ABSENT = 1000
"""Number of rows without the field after which a file that has not had it at all is refused."""
CHAT = "prepare conversations with gpt2 prepare --chat"
_ABSENT = object()
ToText = Callable[[Any, str], str]
"""Makes a text of a field's value, which is none, such as a list of messages. The other argument is its location, for
errors; raises UserError."""


def read_rows(
    stream: Any, raw: IO[bytes], file: Path, kind: str, field: str, to_text: ToText | None = None
) -> Iterator[tuple[str | None, int]]:
    """Yield the text in `field` of each row and the number of bytes read from `raw` so far.

    The text is None where a row has none. `kind` is the suffix without that of a compression, and `stream` the
    uncompressed content with `peek`. to_text: for a field that holds no text. Raises UserError, also where no row has
    text in `field`.
    """
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(3)
    match kind:
        case ".csv" | ".tsv":
            rows = _csv(stream, raw, file, "\t" if kind == ".tsv" else ",", field)
        case ".json":
            rows = _json(stream, raw, file)
        case _:
            rows = _json_lines(iter(lambda: stream.readline(MAX_LINE), b""), raw, file)
    return _texts(rows, field, to_text)


def _texts(
    rows: Iterator[tuple[Any, str, int]], field: str, to_text: ToText | None
) -> Iterator[tuple[str | None, int]]:
    """Yield the text of each row, which is given as its value, its location and the bytes read. Raises UserError."""
    reason, is_found, absent = "", False, 0
    for row, where, read in rows:
        value = row if isinstance(row, str) else _value(row, field, where)
        if to_text is not None and value is not None and value is not _ABSENT:
            value = to_text(value, where)
        if isinstance(value, str):
            if not value.isascii():
                _check_unicode(value, field, where)
            is_found = True
            yield value, read
            continue
        if value is not None and value is not _ABSENT:
            remedy = CHAT if isinstance(value, list) else "remove the row"
            raise UserError(f"{where}: {field!r} is of type {type(value).__name__}, not text; {remedy}")
        if value is None:
            reason = reason or f"{where}: {field!r} is null, not text, and no other row has text in it"
        else:
            found = ", ".join(sorted(map(str, row))[:8]) or "nothing"
            remedy = _remedy(row, field)
            reason = reason or f"{where}: no text in {field!r} (it has {found}); {remedy}"
            absent += 1
        if not is_found and absent == MAX_ABSENT:
            raise UserError(reason)
        yield None, read
    if reason and not is_found:
        raise UserError(reason)


def _remedy(names: Collection[str], field: str) -> str:
    """Return what to do about rows with fields of these names that lack `field`."""
    return CHAT if "messages" in names and field == "text" else "name another with --field"


def _value(row: Any, field: str, where: str) -> Any:
    """Return the value of a field, such as `meta.text` in {"meta": {"text": …}}; _ABSENT where there is none."""
    if not isinstance(row, dict):
        found = "null" if row is None else type(row).__name__
        raise UserError(f"{where}: no text in {field!r} (it has {found}); name another with --field")
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            return None if value is None else _ABSENT
        value = value[name]
    return value


def _check_unicode(text: str, field: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {field!r} is not valid text (half a surrogate pair); remove the row") from None


def _json_lines(lines: Iterator[bytes], raw: IO[bytes], file: Path) -> Iterator[tuple[Any, str, int]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{file}, line {number}"
            if len(line) == MAX_LINE:
                raise UserError(f"{where}: longer than {MAX_LINE:,} bytes; is it JSON lines?")
            yield _parsed(line, where), where, raw.tell()


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({first_line(error)}); fix it or remove it") from None


def _json(stream: Any, raw: IO[bytes], file: Path) -> Iterator[tuple[Any, str, int]]:
    """Yield the elements of an array, the only row that an object is, or the rows of JSON lines."""
    first = b""
    if not stream.peek(1).lstrip().startswith(b"["):
        first = next((line for line in iter(lambda: stream.readline(MAX_LINE), b"") if line.strip()), b"")
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            pass  # an object over several lines
        else:
            yield from _json_lines(itertools.chain([first], iter(lambda: stream.readline(MAX_LINE), b"")), raw, file)
            return
    content = first + stream.read(MAX_JSON + 1 - len(first))
    if len(content) > MAX_JSON:
        raise UserError(
            f"{file} is larger than {MAX_JSON:,} bytes, too large for one JSON value; convert it to JSON lines: "
            f"jq -c '.[]' {file.name} > {file.stem}.jsonl"
        )
    parsed = _parsed(content, str(file))
    rows = parsed if isinstance(parsed, list) else [parsed]
    for number, row in enumerate(rows, start=1):
        yield row, f"{file}, element {number}", raw.tell()


def _csv(
    stream: Any, raw: IO[bytes], file: Path, delimiter: str, field: str
) -> Iterator[tuple[dict[str, str | None], str, int]]:
    """Yield the rows of a table with a header. A row without text in the field has None there."""
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8", newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(reader, [])
        if names and field not in names:
            found = ", ".join(names[:8])
            raise UserError(f"{file}: no column {field!r} (it has {found}); name another with --field")
        column = names.index(field) if names else 0
        for row in reader:
            if row:
                text = row[column] if column < len(row) else ""
                yield {field: text or None}, f"{file}, line {reader.line_num}", raw.tell()
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: not CSV ({error}); is a quotation mark missing?") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text (after line {reader.line_num}); convert it or omit it") from None


def read_parquet(file: Path, field: str, to_text: ToText | None = None) -> Iterator[tuple[str | None, int]]:
    """Yield the texts of a table, None where a row has none, and an estimate of the number of bytes read so far.

    to_text: for a column that holds no text. Raises UserError.
    """
    import pyarrow
    import pyarrow.parquet

    size = file.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if not _has_column(table.schema_arrow, field):
                found = ", ".join((names := table.schema_arrow.names)[:8])
                raise UserError(f"{file}: no column {field!r} (it has {found}); {_remedy(names, field)}")
            yield from _texts(_parquet_rows(table, file, field, size), field, to_text)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as Parquet ({first_line(error)}); fetch it again") from None


def _has_column(schema: Any, field: str) -> bool:
    """Return whether a Parquet schema has a column, or a field of a structure such as `meta.text`."""
    import pyarrow

    if field in schema.names:
        return True
    kind: Any = pyarrow.struct(list(schema))
    for name in field.split("."):
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(name) < 0:
            return False
        kind = kind.field(name).type
    return True


def _parquet_rows(table: Any, file: Path, field: str, size: int) -> Iterator[tuple[dict[str, Any], str, int]]:
    rows = 0
    for batch in table.iter_batches(batch_size=256, columns=[field]):
        name = field if field in batch.schema.names else field.split(".")[0]
        for row, value in enumerate(batch.column(name), start=rows + 1):
            yield {name: value.as_py()}, f"{file}, row {row}", size * rows // table.metadata.num_rows
        rows += len(batch)
