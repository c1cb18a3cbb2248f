"""Joins the partitions of a corpus that several machines prepared to the files that one machine would write."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data.shards import LLMC_TOKENS, open_shard
from gpt2.data.staging import staging
from gpt2.data.writers import FORMATS, Layout, SplitWriter, Written, first_number
from gpt2.errors import UserError
from gpt2.files import sha256
from gpt2.formats.tokenizer_files import DESCRIPTION
from gpt2.json_file import JsonObject, read_object
from gpt2.spelling import counted
from gpt2.tokenizers import from_json

COPIED = 1 << 22
"""Number of tokens copied at a time."""
MOST_PARTITIONS = 100_000
"""Number of partitions of a dataset that is believed."""


def join(partitions: Sequence[Path], out: Path, overwrite: bool, note: Callable[[str], None]) -> Path:
    """Write the dataset `out` from all its partitions, given in any order; returns `out`.

    Raises UserError where a partition is missing or damaged, or they are not of the same preparation.
    """
    ordered = _in_order({folder: _describe(folder) for folder in partitions})
    first = next(iter(ordered.values()))
    tokenizer = from_json(first.tokenizer)
    with staging(out, {"joined": uuid.uuid4().hex}, overwrite) as area:  # a new identity: copying is fast
        numbers = {"train": first_number(first.val_tokens, first.layout), "val": 0}
        writers = {split: SplitWriter(area.folder, first.layout, split, number) for split, number in numbers.items()}
        for folder, about in ordered.items():
            for split, files in about.files.items():
                for file in files:
                    _copy(folder, file, writers[split])
            note(
                f"{folder}: {counted(sum(file.tokens for files in about.files.values() for file in files), 'token')}"
            )
        for writer in writers.values():
            writer.finish()
        text_bytes = sum((Counter(about.bytes) for about in ordered.values()), Counter())
        special = sum((Counter(about.special_tokens) for about in ordered.values()), Counter())
        tokens = area.complete(
            {split: writer.written for split, writer in writers.items() if writer.written},
            first.layout,
            tokenizer,
            source=first.source,
            recipe=first.recipe,
            documents=sum(about.documents for about in ordered.values()),
            bytes=dict(text_bytes),
            part=(1, 1),
            val_tokens=first.val_tokens,
            special_tokens=dict(special),
            parse_special=first.parse_special,
        )
        for split, count in tokens.items():
            note(f"{split}: {counted(count, 'token')}")
        area.move_into_place()
    return out


@dataclass(frozen=True)
class Partition:
    """Holds what the dataset.json of a partition says."""

    source: Any
    """What the text is, as JSON."""
    recipe: str
    layout: Layout
    tokenizer: dict[str, Any]
    """Description from which `from_json` makes the tokenizer."""
    number: int
    """Number of the partition, from 1."""
    count: int
    """Number of partitions of the dataset."""
    files: dict[str, list[Written]]
    """Files of each split."""
    bytes: dict[str, int]
    """Number of bytes of text in each split."""
    documents: int
    val_tokens: int
    special_tokens: dict[str, int]
    """How often the text contains each special token."""
    parse_special: bool


def _describe(folder: Path) -> Partition:
    """Read the dataset.json of a partition. Raises UserError where it is missing or damaged."""
    try:
        about = read_object(folder / DESCRIPTION, "prepare the part again")
    except FileNotFoundError:
        raise UserError(f"{folder} is no part of a dataset: it has no {DESCRIPTION}; make it with --part") from None
    files, sizes, part = about.section("files"), about.section("bytes"), about.values.get("part")
    special = about.section("special_tokens") if about.has("special_tokens") else None  # older files have none
    match part:
        case [int(number), int(count)] if 1 <= number <= count <= MOST_PARTITIONS:
            pass
        case _:
            about.fail("has no part of a dataset that was prepared with --part")
    if unknown := (files.values.keys() | sizes.values.keys()) - {"train", "val"}:
        about.fail(f"has the unknown split {min(unknown)[:40]!r}")
    return Partition(
        source=about.values.get("source"),
        recipe=about.text("recipe"),
        layout=_layout_in(about.section("layout")),
        tokenizer=about.section("tokenizer").values,
        number=number,
        count=count,
        files={split: [_written(file) for file in files.sections(split)] for split in files.values},
        bytes={split: sizes.integer(split) for split in sizes.values},
        documents=about.integer("documents"),
        val_tokens=about.integer("val_tokens"),
        special_tokens={text: special.integer(text) for text in special.values} if special else {},
        parse_special=about.has("parse_special") and about.flag("parse_special"),
    )


def _written(file: JsonObject) -> Written:
    """Return the description of a file in a dataset.json. Raises UserError."""
    return Written(file.file_name("name"), file.integer("tokens"), file.text("sha256"))


def _layout_in(values: JsonObject) -> Layout:
    """Return the layout in a dataset.json. Raises UserError."""
    layout = Layout(
        values.text("format"), values.file_name("name"), values.integer("shard_size"), values.text("dtype")
    )
    if layout.format not in FORMATS or layout.dtype not in LLMC_TOKENS.values():
        values.fail(f"has the unknown format {layout.format[:40]!r} of {layout.dtype[:40]!r}")
    return layout


def _in_order(partitions: dict[Path, Partition]) -> dict[Path, Partition]:
    """Sort the partitions by number. Raises UserError unless every partition of one dataset is given once."""
    one, *others = partitions.items()
    n = one[1].count
    for folder, about in others:
        if about.recipe != one[1].recipe or about.count != n:
            raise UserError(f"{folder} and {one[0]} are parts of different preparations; prepare one of them again")
    found: dict[int, Path] = {}
    for folder, about in partitions.items():
        if (other := found.setdefault(about.number, folder)) != folder:
            raise UserError(f"{folder} and {other} are both part {about.number}/{n}; omit one of them")
    if missing := [f"{i}/{n}" for i in range(1, n + 1) if i not in found]:
        raise UserError(f"part {', '.join(missing)} is missing; all {n} are needed")
    return {found[i]: partitions[found[i]] for i in range(1, n + 1)}


def _copy(folder: Path, file: Written, writer: SplitWriter) -> None:
    """Append a file of a partition. Raises UserError where it was changed since it was written."""
    path = folder / file.name
    shard = open_shard(path)
    if shard.count != file.tokens or sha256(path) != file.sha256:
        raise UserError(f"{path} is not the file that was written (its SHA-256 differs); prepare the part again")
    for start in range(0, shard.count, COPIED):
        writer.append(shard.read(start, min(start + COPIED, shard.count)))
