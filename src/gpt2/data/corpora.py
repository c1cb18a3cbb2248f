"""The texts that can be asked for by name: where their files are, and how each project usually prepares them."""

import fnmatch
import re
import shutil
import sys
import sysconfig
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2.errors import UserError, first_line
from gpt2.files import download, publish, sha256

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WIKITEXT_HEADING = re.compile(r" = [^=].* = \n")
"""The line with which an article of WikiText begins; those of its sections have more equals signs."""


@dataclass(frozen=True)
class Input:
    """A file of text to prepare, which may still be on another machine."""

    name: str
    size: int
    """Bytes; 0 where that is not known before it is fetched."""
    fetch: Callable[[Path], Path]
    """Where the file is on this machine, after putting it into the folder given if need be. Raises UserError."""
    split: str | None = None
    """`train` or `val` where the source says it."""
    version: str = ""
    """What changes when the content does."""
    copy: str | None = None
    """Where in that folder, of a file that is downloaded to be read once."""


@dataclass(frozen=True)
class Corpus:
    """A text by name."""

    inputs: Callable[[Path | None], list[Input]]
    """The user's `--from` to the files of its text, in order."""
    tokenizer: str = "gpt2"
    vocab_size: int | None = None
    heading: re.Pattern[str] | None = None
    """What documents begin with, where the rows of the files are single lines."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How it is split, unless the user says otherwise."""
    settings_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Likewise, by format: as the project that the format is from prepares this text."""
    is_large: bool = True
    """Whether its files are read only once, since they do not all fit on a disk."""


@dataclass(frozen=True)
class HubFiles:
    """Files of a dataset on Hugging Face's hub, at one revision; no script of theirs is run."""

    repo: str
    revision: str
    size: int
    """Bytes of all of them."""
    splits: Mapping[str, str]
    """Pattern of the paths of each split's files."""

    def inputs(self, given: Path | None) -> list[Input]:
        """The files, to be downloaded one by one, or found in a copy of the repository, `given`."""
        if given is not None:
            return self._copies(given)
        from huggingface_hub import HfApi, constants
        from huggingface_hub.hf_api import RepoFile

        found: list[Input] = []
        try:  # the first request fails at once where there is no network; the next ones are tried for half a minute
            HfApi().dataset_info(self.repo, revision=self.revision, expand=["sha"])
            for split, pattern in self.splits.items():
                where = str(PurePosixPath(pattern).parent)
                tree = HfApi().list_repo_tree(self.repo, where, repo_type="dataset", revision=self.revision)
                files = [f for f in tree if isinstance(f, RepoFile) and fnmatch.fnmatch(f.path, pattern)]
                for file in sorted(files, key=lambda f: f.path):
                    digest = file.lfs.sha256 if file.lfs else None
                    found.append(self._remote(file.path, file.size, digest, split))
        except Exception as error:  # the hub's client raises its own, httpx's and the system's errors
            raise UserError(
                f"Hugging Face's hub at {constants.ENDPOINT} does not list {self.repo} ({first_line(error)}); "
                "fetch its files elsewhere and give their folder with --from"
            ) from error
        if not found:
            raise UserError(f"{self.repo} has no files like {' or '.join(self.splits.values())} at {self.revision}")
        return found

    def _remote(self, path: str, size: int, digest: str | None, split: str) -> Input:
        def fetch(folder: Path) -> Path:
            from huggingface_hub import constants, hf_hub_download

            try:
                file = hf_hub_download(self.repo, path, repo_type="dataset", revision=self.revision, local_dir=folder)
            except Exception as error:  # as above
                raise UserError(
                    f"{path} of {self.repo} cannot be downloaded from {constants.ENDPOINT} ({first_line(error)}); "
                    "run the same command again: it goes on from here"
                ) from error
            if digest is not None and sha256(Path(file)) != digest:
                Path(file).unlink()
                raise UserError(f"{path} of {self.repo} arrived damaged; run the same command again")
            return Path(file)

        return Input(f"{self.repo}/{path}", size, fetch, self._split(split), self.revision, path)

    def _copies(self, given: Path) -> list[Input]:
        found: list[Input] = []
        for split, pattern in self.splits.items():
            paths = sorted(given.glob(pattern)) or sorted(given.glob(PurePosixPath(pattern).name))
            if not paths:
                raise UserError(f"--from={given} has no files like {pattern}")
            found += [local(path, self._split(split)) for path in paths]
        return found

    def _split(self, name: str) -> str | None:
        """The split of a file; not given where there is only one, out of which validation is taken."""
        return name if len(self.splits) > 1 else None


def local(path: Path, split: str | None = None) -> Input:
    """A file on this machine."""
    about = path.stat()
    return Input(str(path), about.st_size, lambda folder: path, split, str(about.st_mtime_ns))


def standard_input() -> Input:
    """What is typed or piped in, kept in a file, since it cannot be read twice."""

    def fetch(folder: Path) -> Path:
        path = folder / "standard_input.txt"
        if sys.stdin is None:
            raise UserError("there is no standard input to read; name a file")
        if not path.exists():
            with publish(path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        return path

    return Input("standard input", 0, fetch, version=uuid.uuid4().hex)


def _shakespeare(given: Path | None) -> list[Input]:
    if given is None:
        return [Input(SHAKESPEARE_URL, 1_115_394, _download_shakespeare)]
    if not given.is_file():
        raise UserError(f"--from={given} is not a file")
    if (found := sha256(given)) != SHAKESPEARE_SHA256:
        raise UserError(
            f"{given} is not the tiny Shakespeare text (SHA-256 {found[:12]}…, not {SHAKESPEARE_SHA256[:12]}…); "
            f"prepare it as a text of your own: gpt2 prepare {given}"
        )
    return [local(given)]


def _download_shakespeare(folder: Path) -> Path:
    path = folder / "shakespeare.txt"
    if not path.is_file():
        otherwise = "fetch it elsewhere and run gpt2 prepare NAME --from FILE"
        download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256, otherwise)
    return path


def _python_standard_library(given: Path | None) -> list[Input]:
    """Every module of the running Python's standard library but tests and tables of characters, by path."""
    if given is not None:
        raise UserError("pystdlib is found on this machine and takes no --from")
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "pydoc_data", "encodings"}
    files = [p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts)]
    if not files:
        raise UserError(f"there is no Python source in {root}; prepare a text of your own: gpt2 prepare FILE")
    return [local(path) for path in sorted(files, key=lambda p: p.relative_to(root).as_posix())]


def _fineweb(repo: str, revision: str, sample: str, size: int, llmc: str, npy: str) -> Corpus:
    """FineWeb as llm.c and build-nanogpt take it: the first of the shards of 100M tokens is for validation."""
    files = HubFiles(repo, revision, size, {"train": f"sample/{sample}/*.parquet"})
    settings = {"val_tokens": 100_000_000}
    return Corpus(files.inputs, settings=settings, settings_of={"llmc": {"name": llmc}, "npy": {"name": npy}})


FINEWEB = "HuggingFaceFW/fineweb", "9bb295ddab0e05d785b879661af7260fed5140fc"
FINEWEB_EDU = "HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"

CORPORA = {
    "shakespeare_char": Corpus(_shakespeare, "char", is_large=False),
    "shakespeare": Corpus(
        _shakespeare,
        is_large=False,
        settings_of={
            "llmc": {"name": "tiny_shakespeare", "separator": "\n\n", "val_tokens": 32_768, "shard_size": 0}
        },
    ),
    "pystdlib": Corpus(_python_standard_library, "bpe", 2048, is_large=False),
    "tinystories": Corpus(
        HubFiles(
            "roneneldan/TinyStories",
            "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
            1_000_775_442,
            {"train": "data/train-*.parquet", "val": "data/validation-*.parquet"},
        ).inputs
    ),
    "openwebtext": Corpus(
        HubFiles(
            "Skylion007/openwebtext",
            "79d93d786212f7344586290adb811d4ae6a1762c",
            24_193_092_408,
            {"train": "plain_text/train-*.parquet"},
        ).inputs,
        settings={"val_fraction": 0.0005},
    ),
    "fineweb": _fineweb(*FINEWEB, "10BT", 30_639_384_917, "fineweb", "fineweb"),
    "fineweb-100B": _fineweb(*FINEWEB, "100BT", 302_600_000_000, "fineweb", "fineweb"),
    "fineweb-edu": _fineweb(*FINEWEB_EDU, "10BT", 28_518_193_415, "edu_fineweb", "edufineweb"),
    "fineweb-edu-100B": _fineweb(*FINEWEB_EDU, "100BT", 286_394_522_604, "edu_fineweb", "edufineweb"),
    "wikitext-103": Corpus(
        HubFiles(
            "Salesforce/wikitext",
            "b08601e04326c79dfdd32d625aee71d232d685c3",
            314_733_787,
            {"train": "wikitext-103-raw-v1/train-*.parquet", "val": "wikitext-103-raw-v1/validation-*.parquet"},
        ).inputs,
        heading=WIKITEXT_HEADING,
    ),
}
