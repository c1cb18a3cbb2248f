"""Recognises files that are not UTF-8 text by their first bytes."""

import codecs
from pathlib import Path

from gpt2.errors import UserError

ARCHIVE = "unpack it first"
TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")
BINARY = {  # the first bytes: what the file is, and what to do
    b"PK\x03\x04": (
        "a ZIP archive, as .zip, .docx, .xlsx, .epub and .npz files are",
        "take the text out of it first",
    ),
    b"%PDF-": ("a PDF document", "convert it first, for example with pdftotext"),
    b"\x93NUMPY": ("a NumPy array", "gpt2 train reads token files: name their folder with --dataset"),
    b"PAR1": ("a Parquet file", "let its name end with .parquet"),
    b"\x1f\x8b": ("compressed by gzip", "let its name end with .gz, or unpack it if it is an archive"),
    b"\xfd7zXZ\x00": ("compressed by xz", "let its name end with .xz, or unpack it if it is an archive"),
    b"BZh91AY": ("compressed by bzip2", "let its name end with .bz2, or unpack it if it is an archive"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "let its name end with .zst, or unpack it if it is an archive"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", ARCHIVE),
    b"Rar!\x1a\x07": ("a RAR archive", ARCHIVE),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save it as text first"),
    b"SQLite format 3\x00": ("a SQLite database", "export its text first"),
    b"\x89PNG": ("an image", "omit it"),
    b"\xff\xd8\xff": ("an image", "omit it"),
    b"\x7fELF": ("a program", "omit it"),
}
MARKS = {  # UTF-32's first, because one of them begins as one of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
LEAST = 32
"""Number of bytes from which on NUL bytes are counted."""


def check_is_text(head: bytes, file: Path) -> None:
    """Raise UserError where the first bytes of a file, uncompressed, are those of a known kind that is not UTF-8."""
    if file.name.lower().endswith(TAR_SUFFIXES) or head[257:262] == b"ustar":
        raise UserError(f"{file} is a tar archive, not text; {ARCHIVE}: tar xf {file.name}")
    for start, (what, remedy) in BINARY.items():
        if head.startswith(start):
            raise UserError(f"{file} is {what}, not text; {remedy}")
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), _unmarked_encoding(head))
    if file.suffix == ".bin" and 0 in head:
        raise UserError(f"{file} is binary, as files of tokens are; gpt2 train reads these: --dataset={file.parent}")
    if encoding:
        raise UserError(
            f"{file} is not UTF-8 text but {encoding}; convert it: iconv -f {encoding} -t UTF-8 {file.name} > NEW.txt"
        )
    if len(head) >= LEAST and head.count(0) > 0.3 * len(head):
        raise UserError(f"{file} is binary data ({head.count(0)} of its first {len(head)} bytes are 0), not text")


def _unmarked_encoding(head: bytes) -> str | None:
    """Return the encoding of a text that has NUL bytes in the same positions of most characters."""
    head = head[: len(head) // 4 * 4]
    if len(head) < LEAST:
        return None
    zeros = [head[i::4].count(0) / (len(head) / 4) for i in range(4)]
    match [zero > 0.8 for zero in zeros], [zero < 0.05 for zero in zeros]:
        case [False, True, True, True], [True, *_]:
            return "UTF-32LE"
        case [True, True, True, False], [*_, True]:
            return "UTF-32BE"
        case [False, True, False, True], [True, False, True, False]:
            return "UTF-16LE"
        case [True, False, True, False], [False, True, False, True]:
            return "UTF-16BE"
    return None
