"""Joins the partitions of a corpus that several machines prepared to the files that one machine would write."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2.data.shards import open_shard
from gpt2.data.staging import DESCRIPTION, staging
from gpt2.data.writers import Layout, SplitWriter, Written, first_number
from gpt2.errors import UserError
from gpt2.files import sha256
from gpt2.tokenizers import from_json

COPIED = 1 << 22
"""Number of tokens copied at a time."""


def join(partitions: Sequence[Path], out: Path, overwrite: bool, note: Callable[[str], None]) -> Path:
    """Write the dataset `out` from all its partitions, given in any order; returns `out`.

    Raises UserError where a partition is missing or damaged, or they are not of the same preparation.
    """
    ordered = _in_order({folder: _describe(folder) for folder in partitions})
    first = next(iter(ordered.values()))
    layout, tokenizer = Layout(**first["layout"]), from_json(first["tokenizer"])
    with staging(out, {"joined": uuid.uuid4().hex}, overwrite) as area:  # a new identity: copying is fast
        numbers = {"train": first_number(first["val_tokens"], layout), "val": 0}
        writers = {split: SplitWriter(area.folder, layout, split, number) for split, number in numbers.items()}
        for folder, about in ordered.items():
            for split, files in about["files"].items():
                for file in files:
                    _copy(folder, Written(**file), writers[split])
            note(f"{folder}: {sum(about['tokens'].values()):,} tokens")
        for writer in writers.values():
            writer.finish()
        text_bytes = sum((Counter(about["bytes"]) for about in ordered.values()), Counter())
        special = sum((Counter(about.get("special_tokens", {})) for about in ordered.values()), Counter())
        tokens = area.complete(
            {split: writer.written for split, writer in writers.items() if writer.written},
            layout,
            tokenizer,
            source=first["source"],
            recipe=first["recipe"],
            documents=sum(about["documents"] for about in ordered.values()),
            bytes=dict(text_bytes),
            part=(1, 1),
            val_tokens=first["val_tokens"],
            special_tokens=dict(special),
            parse_special=first.get("parse_special", False),
        )
        for split, count in tokens.items():
            note(f"{split}: {count:,} tokens")
        area.move_into_place()
    return out


def _describe(folder: Path) -> dict[str, Any]:
    """Read the dataset.json of a partition. Raises UserError where it is missing or damaged."""
    path = folder / DESCRIPTION
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        i, n = about["part"]
        if not 1 <= i <= n:
            raise ValueError(f"part {i}/{n}")
        missing = {
            "recipe",
            "layout",
            "tokenizer",
            "files",
            "tokens",
            "bytes",
            "documents",
            "val_tokens",
        } - about.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return about
    except FileNotFoundError:
        raise UserError(f"{folder} is no part of a dataset: it has no {DESCRIPTION}; make it with --part") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the part again") from None


def _in_order(partitions: dict[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Sort the partitions by number. Raises UserError unless every partition of one dataset is given once."""
    one, *others = partitions.items()
    n = one[1]["part"][1]
    for folder, about in others:
        if about["recipe"] != one[1]["recipe"] or about["part"][1] != n:
            raise UserError(f"{folder} and {one[0]} are parts of different preparations; prepare one of them again")
    found: dict[int, Path] = {}
    for folder, about in partitions.items():
        if (other := found.setdefault(about["part"][0], folder)) != folder:
            raise UserError(f"{folder} and {other} are both part {about['part'][0]}/{n}; omit one of them")
    if missing := [f"{i}/{n}" for i in range(1, n + 1) if i not in found]:
        raise UserError(f"part {', '.join(missing)} is missing; all {n} are needed")
    return {found[i]: partitions[found[i]] for i in range(1, n + 1)}


def _copy(folder: Path, file: Written, writer: SplitWriter) -> None:
    """Append a file of a partition. Raises UserError where it was changed since it was written."""
    path = folder / Path(file.name).name
    shard = open_shard(path)
    if shard.count != file.tokens or sha256(path) != file.sha256:
        raise UserError(f"{path} is not the file that was written (its SHA-256 differs); prepare the part again")
    for start in range(0, shard.count, COPIED):
        writer.append(shard.read(start, min(start + COPIED, shard.count)))
