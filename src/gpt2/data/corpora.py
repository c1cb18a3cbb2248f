"""Corpora by name: where their files are, and how the projects that use them prepare them."""

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
"""First line of an article of WikiText. The headings of its sections have more equals signs."""


@dataclass(frozen=True)
class Input:
    """An input is one file of text, which may have to be downloaded first."""

    name: str
    size: int
    """Size in bytes; 0 where it is unknown before the download."""
    fetch: Callable[[Path], Path]
    """Returns the path of the file, after downloading it into the given folder if necessary. Raises UserError."""
    split: str | None = None
    """`train` or `val` where the source determines it."""
    version: str = ""
    """A value that changes when the content of the file changes."""
    copy: str | None = None
    """Path in that folder of a download that is deleted after it has been read; None for other files."""


TOKEN_BYTES = 2
"""Bytes of a token in a prepared corpus, whose vocabularies have at most 65,536 ids."""


@dataclass(frozen=True)
class Corpus:
    """A corpus is a text that can be prepared by name."""

    inputs: Callable[[Path | None], list[Input]]
    """Returns the files of the text in order, given the user's `--from`."""
    tokenizer: str = "gpt2"
    vocab_size: int | None = None
    heading: re.Pattern[str] | None = None
    """First line of a document, where the rows of the files are single lines."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Default settings of the preparation."""
    settings_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further defaults by format, with which the project of that format prepares this text."""
    is_large: bool = True
    """Whether its files are too large to keep, so that each is read only once."""
    tokens: int = 0
    """Approximate number of training tokens, to plan with; 0 where it depends on this machine."""

    @property
    def size(self) -> int:
        """Return the bytes of its files, without asking the hub."""
        hub = getattr(self.inputs, "__self__", None)
        return hub.size if isinstance(hub, HubFiles) else sum(file.size for file in self.inputs(None))


@dataclass(frozen=True)
class HubFiles:
    """Describes files of a dataset on Hugging Face's hub at one revision. No script of the hub is run."""

    repo: str
    revision: str
    size: int
    """Total size in bytes."""
    splits: Mapping[str, str]
    """Pattern of the files' paths, by split."""

    def inputs(self, given: Path | None) -> list[Input]:
        """Return the files, which are downloaded one by one, or lie in `given`, a copy of the repository.

        Raises UserError where the hub cannot be reached or files are missing.
        """
        if given is not None:
            return self._copies(given)
        from huggingface_hub import HfApi, constants
        from huggingface_hub.hf_api import RepoFile

        found: list[Input] = []
        try:  # without a network, this first request fails at once; later ones are retried for half a minute
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
        """Return the split of a file; None where there is only one split, from which validation text is taken."""
        return name if len(self.splits) > 1 else None


def local(path: Path, split: str | None = None) -> Input:
    """Return a local file as an input."""
    about = path.stat()
    return Input(str(path), about.st_size, lambda folder: path, split, str(about.st_mtime_ns))


def standard_input() -> Input:
    """Return standard input as an input. It is kept in a file, because it cannot be read twice."""

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
            f"prepare it by its path instead: gpt2 prepare {given}"
        )
    return [local(given)]


def _download_shakespeare(folder: Path) -> Path:
    path = folder / "shakespeare.txt"
    if not path.is_file():
        otherwise = "fetch it elsewhere and give it to gpt2 prepare or gpt2 tokenizer train with --from"
        download(SHAKESPEARE_URL, path, SHAKESPEARE_SHA256, otherwise)
    return path


def _python_standard_library(given: Path | None) -> list[Input]:
    """Return the modules of the running Python's standard library by path, without tests and character tables."""
    if given is not None:
        raise UserError("pystdlib is found on this machine and takes no --from")
    root = Path(sysconfig.get_path("stdlib"))
    omitted = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "pydoc_data", "encodings"}
    files = [p for p in root.rglob("*.py") if not omitted & set(p.relative_to(root).parts)]
    if not files:
        raise UserError(f"there is no Python source in {root}; prepare a text of your own: gpt2 prepare FILE")
    return [local(path) for path in sorted(files, key=lambda p: p.relative_to(root).as_posix())]


def _fineweb(repo: str, revision: str, sample: str, size: int, llmc: str, npy: str) -> Corpus:
    """Return FineWeb as llm.c and build-nanogpt use it: the first shard of 100M tokens is for validation."""
    files = HubFiles(repo, revision, size, {"train": f"sample/{sample}/*.parquet"})
    settings = {"val_tokens": 100_000_000}
    by_format = {"llmc": {"name": llmc}, "npy": {"name": npy}}
    tokens = 10**9 * int(sample.removesuffix("BT"))
    return Corpus(files.inputs, settings=settings, settings_of=by_format, tokens=tokens)


FINEWEB = "HuggingFaceFW/fineweb", "9bb295ddab0e05d785b879661af7260fed5140fc"
FINEWEB_EDU = "HuggingFaceFW/fineweb-edu", "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"

CORPORA = {
    "shakespeare_char": Corpus(_shakespeare, "char", is_large=False, tokens=1_003_854),
    "shakespeare": Corpus(
        _shakespeare,
        is_large=False,
        tokens=301_966,
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
        ).inputs,
        tokens=470_000_000,
    ),
    "openwebtext": Corpus(
        HubFiles(
            "Skylion007/openwebtext",
            "79d93d786212f7344586290adb811d4ae6a1762c",
            24_193_092_408,
            {"train": "plain_text/train-*.parquet"},
        ).inputs,
        settings={"val_fraction": 0.0005},
        tokens=9_035_582_198,
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
        tokens=118_000_000,
    ),
}
