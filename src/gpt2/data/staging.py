"""Where a dataset grows until it is whole: a folder inside its own, from which a killed preparation goes on."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2.data.writers import Layout, Written
from gpt2.errors import UserError
from gpt2.files import locked, write_bytes, write_text, writing
from gpt2.formats.tokenizer_writer import meta_bytes
from gpt2.tokenizers import CharTokenizer, Tokenizer

FORMAT = "gpt2 dataset 2"
DESCRIPTION = "dataset.json"
STAGING = ".new"
"""The folder inside the dataset's."""
JOURNAL = "journal.json"
LOCK = "lock"
META = "meta.pkl"


class Staging:
    """The growing dataset of one recipe: files, and a journal of how far they are good."""

    def __init__(self, out: Path, recipe: dict[str, Any]) -> None:
        self.out = out
        self.folder = out / STAGING
        self.identity = digest(recipe)
        """Of everything that the files depend on."""
        self.journal = self._read()

    def _read(self) -> dict[str, Any]:
        """The journal of this recipe; an empty one, with nothing else in the folder, where there is none."""
        try:
            journal = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            if journal["identity"] == self.identity and self._has_all(journal):
                return journal
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or one that a crash of the machine damaged
        if self.is_whole and not (self.out / DESCRIPTION).exists():  # another dataset, killed while it was moved
            for name in _files_of(self.folder / DESCRIPTION):
                (self.out / name).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return {"identity": self.identity}

    def _has_all(self, journal: dict[str, Any]) -> bool:
        """Whether the files are as long as the journal says; those of a whole dataset may be in their places."""
        states = journal.get("splits", {}).values()
        sizes = [(self.folder / name, size) for state in states for name, size in state["files"].items()]
        return self.is_whole or all(path.stat().st_size >= size for path, size in sizes)

    def record(self, **values: Any) -> None:
        """Write values down; what they speak of must be on the disk."""
        self.journal |= values
        write_text(self.folder / JOURNAL, json.dumps(self.journal))

    def forget(self) -> None:
        """Keep nothing for another process to go on from."""
        (self.folder / JOURNAL).unlink(missing_ok=True)

    @property
    def is_whole(self) -> bool:
        """Whether only its files have to be moved to their places."""
        return (self.folder / DESCRIPTION).is_file()

    def complete(
        self, files: dict[str, list[Written]], layout: Layout, tokenizer: Tokenizer, **about: Any
    ) -> dict[str, int]:
        """All files of each split are on the disk: say what they are. Returns the tokens of each split."""
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
        """Put the files where those of an older dataset may be, which go. Until the last is there, there is none."""
        old = self.out / DESCRIPTION
        if old.is_file():
            for name in _files_of(old):
                (self.out / name).unlink(missing_ok=True)
            old.unlink()
        (self.out / META).unlink(missing_ok=True)  # nanoGPT would believe it
        for name in [*_files_of(self.folder / DESCRIPTION), META]:
            if (path := self.folder / name).exists():  # else an earlier process has moved it, or there is none
                path.replace(self.out / name)
        (self.folder / DESCRIPTION).replace(old)
        shutil.rmtree(self.folder)


def digest(recipe: dict[str, Any]) -> str:
    """SHA-256 of what a dataset depends on."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _files_of(description: Path) -> list[str]:
    """The files of a dataset, none of them outside its folder."""
    try:
        files = json.loads(description.read_text(encoding="utf-8"))["files"]
        return [Path(f["name"]).name for found in files.values() for f in found]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["train.bin", "val.bin"]  # of an older format, or damaged


@contextmanager
def staging(out: Path, recipe: dict[str, Any], overwrite: bool) -> Iterator[Staging]:
    """The place for a dataset to be `out`, for one process at a time.

    After an error it stays only where work is written down in it. Raises UserError where `out` is not free.
    """
    if (out / DESCRIPTION).exists():
        if not overwrite:
            raise UserError(f"{out} already holds a dataset; choose another --out, or --overwrite to make it anew")
    elif out.exists() and not (out / STAGING).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no dataset; choose another --out, so that nothing in it is lost")
    folder = out / STAGING
    with writing(out):
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)  # also where `out` is a link to nothing yet
    with locked(folder / LOCK) as mine:
        if not mine:
            raise UserError(f"{out} is being prepared by another process; wait for it, or choose another --out")
        try:
            yield Staging(out, recipe)
        except BaseException:
            if not any((folder / name).exists() for name in (JOURNAL, DESCRIPTION)):
                shutil.rmtree(folder)
                with suppress(OSError):  # unless there is more in it, or it is where a disk is mounted
                    out.rmdir()
            raise
