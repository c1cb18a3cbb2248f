"""Lists datasets without reading their tokens: how large they are, and which tokenizer made them."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2.data.dataset import files_of, is_dataset, open_shards, read_described
from gpt2.errors import UserError, first_line
from gpt2.files import folders_below
from gpt2.formats.tokenizer_files import DESCRIPTION, read_meta
from gpt2.json_file import JsonObject

DEPTH = 2
"""Number of levels below a folder at which datasets are looked for."""
GPT2_IDS = 50257
"""Size of GPT-2's vocabulary, which token files without a description are taken to have."""


@dataclass(frozen=True)
class DatasetEntry:
    """Describes a dataset in a list."""

    name: str
    """Path below the folder that was listed."""
    path: Path
    train: int | None = None
    """Number of training tokens."""
    val: int | None = None
    """Number of validation tokens."""
    tokenizer: str | None = None
    """Kind of the tokenizer."""
    vocab_size: int | None = None
    bytes: int = 0
    """Size of its files on the disk."""
    problem: str | None = None
    """What is wrong with it; None where nothing was noticed."""

    def figures(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return asdict(self) | {"path": str(self.path)}


def datasets_in(folders: Iterable[Path]) -> list[DatasetEntry]:
    """Return the datasets among the folders and below them, in the order of their names. A damaged one is listed."""
    found: dict[str, DatasetEntry] = {}
    for folder in folders:
        for path in folders_below(folder, DEPTH, lambda path: path.is_dir() and is_dataset(path)):
            name = folder.name if path == folder else str(path.relative_to(folder))
            found.setdefault(os.path.realpath(path), describe(path, name or str(path)))
    return sorted(found.values(), key=lambda entry: entry.name)


def describe(path: Path, name: str) -> DatasetEntry:
    """Return the entry of the dataset in a folder. The ids in its files are not read."""
    try:
        described = read_described(path)
        about, known = described if described is not None else (None, {})
        files = files_of(path, known if about is not None else None)
        shards = open_shards(files, known)
        if about is not None:
            kind, vocab_size = about.section("tokenizer").text("kind"), _vocab_size(about)
        elif (path / "meta.pkl").is_file():
            tokenizer = read_meta(path / "meta.pkl")
            kind, vocab_size = tokenizer.kind, tokenizer.vocab_size
        else:
            kind, vocab_size = "gpt2", GPT2_IDS
        used = [*files, *(path / other for other in (DESCRIPTION, "meta.pkl") if (path / other).is_file())]
        size = sum(file.stat().st_size for file in used)
    except (UserError, OSError) as error:
        return DatasetEntry(name, path, problem=first_line(error))
    tokens = {split: sum(shard.count for shard in found) for split, found in shards.items()}
    problem = None if "train" in tokens else "it has no train tokens"
    return DatasetEntry(name, path, tokens.get("train"), tokens.get("val"), kind, vocab_size, size, problem)


def _vocab_size(about: JsonObject) -> int | None:
    """Return the size of the vocabulary that a dataset.json records; None where it records none."""
    return about.integer("vocab_size") if about.has("vocab_size") else None
