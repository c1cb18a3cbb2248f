"""The staging area of a dataset: a folder inside its own, in which it is prepared, and continued after a kill."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gpt2.data.text import Mark
from gpt2.data.writers import Layout, Written
from gpt2.errors import UserError
from gpt2.files import locked, remove, write_bytes, write_text, writing
from gpt2.formats.tokenizer_files import DESCRIPTION
from gpt2.formats.tokenizer_writer import meta_bytes
from gpt2.json_file import JsonObject, read_object
from gpt2.tokenizers import CharTokenizer, Tokenizer, from_json

FORMAT = "gpt2 dataset 2"
STAGING = ".new"
"""Name of the folder inside the dataset's folder."""
JOURNAL = "journal.json"
LOCK = "lock"
META = "meta.pkl"


class Staging:
    """Holds the dataset in preparation: its files, and a journal that records up to where they are valid."""

    def __init__(self, out: Path, recipe: dict[str, Any]) -> None:
        self.out = out
        self.folder = out / STAGING
        self.identity = digest(recipe)
        """Hash of everything that determines the files."""
        self.journal = self._read()

    def _read(self) -> dict[str, Any]:
        """Read the journal of this recipe. Where there is none, empty the folder and begin a journal."""
        with suppress(OSError, UserError):  # no journal, or one that a crash of the machine damaged
            journal = read_object(self.folder / JOURNAL, "prepare the dataset again")
            if journal.text("identity") == self.identity and self._has_all(journal):
                return journal.values
        if self.is_complete and not (self.out / DESCRIPTION).exists():  # of another recipe, killed during the move
            for name in _files_of(self.folder / DESCRIPTION):
                (self.out / name).unlink(missing_ok=True)
        _empty(self.folder)
        return {"identity": self.identity}

    def _has_all(self, journal: JsonObject) -> bool:
        """Return whether the files have the sizes in the journal; those of a complete dataset may have been moved."""
        sizes = _sizes_in(journal)
        return self.is_complete or all((self.folder / name).stat().st_size >= size for name, size in sizes.items())

    def record(self, **values: Any) -> None:
        """Write values to the journal. The files that they describe must be on the disk already."""
        self.journal |= values
        write_text(self.folder / JOURNAL, json.dumps(self.journal))

    def forget(self) -> None:
        """Delete the journal, so that no process continues from it."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    @property
    def is_complete(self) -> bool:
        """Return whether all files are written, and only have to be moved to their final paths."""
        return (self.folder / DESCRIPTION).is_file()

    def description(self) -> dict[str, Any]:
        """Return the content of dataset.json, once it is complete."""
        return json.loads((self.folder / DESCRIPTION).read_text(encoding="utf-8"))

    def complete(
        self, files: dict[str, list[Written]], layout: Layout, tokenizer: Tokenizer, **about: Any
    ) -> dict[str, int]:
        """Write dataset.json, once all files of each split are on the disk; return the number of tokens by split."""
        tokens = {split: sum(file.tokens for file in found) for split, found in files.items()}
        description = {
            "format": FORMAT,
            **about,
            "layout": asdict(layout),
            "files": {split: [asdict(file) for file in found] for split, found in files.items()},
            "tokens": tokens,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.to_json(),
        }
        if isinstance(tokenizer, CharTokenizer) and layout.format == "nanogpt":
            write_bytes(self.folder / META, meta_bytes(tokenizer))
        write_text(self.folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        return tokens

    def move_into_place(self) -> None:
        """Move the files to the dataset's folder, and remove those of an older dataset there.

        The folder is not a dataset before dataset.json, the last file, is moved.
        """
        old = self.out / DESCRIPTION
        if old.is_file():
            for name in _files_of(old):
                (self.out / name).unlink(missing_ok=True)
            old.unlink()
        (self.out / META).unlink(missing_ok=True)  # nanoGPT would use an outdated one
        for name in [*_files_of(self.folder / DESCRIPTION), META]:
            if (path := self.folder / name).exists():  # otherwise an earlier process has moved it, or there is none
                path.replace(self.out / name)
        (self.folder / DESCRIPTION).replace(old)
        _remove(self.folder)


def _sizes_in(journal: JsonObject) -> dict[str, int]:
    """Return the least size in bytes of each file. Raises UserError for a wrong value anywhere in the journal."""
    if journal.has("tokenizer"):
        from_json(journal.section("tokenizer").values)
    if not {"mark", "text_bytes", "splits"} & journal.values.keys():
        return {}
    mark, lengths, splits, special = (journal.section(key) for key in ("mark", "text_bytes", "splits", "special"))
    for text in special.values:
        special.integer(text)
    for position in fields(Mark):
        mark.integer(position.name)
    sizes: dict[str, int] = {}
    for name in ("train", "val"):
        lengths.integer(name)
        state = splits.section(name)
        for file in state.sections("written"):
            file.file_name("name"), file.integer("tokens"), file.text("sha256")
        files = state.section("files")
        found = {Path(name).name: files.integer(name) for name in files.values}
        state.integer("open_tokens", most=max(found.values(), default=0))  # a token has at least a byte
        sizes |= found
    return sizes


def digest(recipe: dict[str, Any]) -> str:
    """Return the SHA-256 of a recipe, which is everything that determines a dataset."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _files_of(description: Path) -> list[str]:
    """Return the names of the files of a dataset, none of them outside its folder."""
    try:
        files = read_object(description, "prepare the dataset again").section("files")
        return [file.file_name("name") for split in files.values for file in files.sections(split)]
    except UserError:
        return ["train.bin", "val.bin"]  # for an older format, or a damaged description


@contextmanager
def staging(out: Path, recipe: dict[str, Any], overwrite: bool) -> Iterator[Staging]:
    """Yield the staging area of the dataset `out`, for one process at a time.

    After an error it stays only if its journal records work. Raises UserError where `out` is not free.
    """
    if (out / DESCRIPTION).exists():
        if not overwrite:
            raise UserError(f"{out} already holds a dataset; choose another --out, or replace it with --overwrite")
    elif out.exists() and not (out / STAGING).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no dataset; choose another --out, so that nothing in it is lost")
    folder = out / STAGING
    with writing(out):
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)  # `out` may be a link to a missing folder
    with locked(folder / LOCK) as acquired:
        if not acquired:
            raise UserError(f"{out} is being prepared by another process; wait for it, or choose another --out")
        try:
            yield Staging(out, recipe)
        except BaseException:
            if not any((folder / name).exists() for name in (JOURNAL, DESCRIPTION)):
                _remove(folder)
                with suppress(OSError):  # if it is not empty, or a mount point, it stays
                    out.rmdir()
            raise
        is_lock_left = [path.name for path in folder.glob("*")] == [LOCK]  # by Windows, which deletes no open file
    if is_lock_left:
        _remove(folder)


def _empty(folder: Path) -> None:
    """Remove everything in a staging area except its lock."""
    for path in folder.iterdir():
        if path.name != LOCK:
            remove(path)


def _remove(folder: Path) -> None:
    """Remove a staging area; on Windows its lock stays as long as it is held."""
    _empty(folder)
    with suppress(PermissionError):
        shutil.rmtree(folder)
