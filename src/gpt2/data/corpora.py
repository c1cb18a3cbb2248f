"""The texts that can be asked for by name."""

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2.errors import UserError
from gpt2.files import download, sha256

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Corpus:
    """A text by name, and how it is usually tokenised."""

    tokenizer: str
    vocab_size: int
    documents: Callable[[Path, Path | None], list[Path]]
    """(folder to download into, the user's `--from` file) to the files that are its documents, in order."""


def _shakespeare(cache: Path, given: Path | None) -> list[Path]:
    if given is not None:
        if not given.is_file():
            raise UserError(f"--from={given} is not a file")
        if (found := sha256(given)) != SHAKESPEARE_SHA256:
            raise UserError(
                f"{given} is not the tiny Shakespeare text (SHA-256 {found[:12]}…, not {SHAKESPEARE_SHA256[:12]}…); "
                f"prepare it as a text of your own: gpt2 prepare {given}"
            )
        return [given]
    path = cache / "shakespeare.txt"
    if not path.is_file() or sha256(path) != SHAKESPEARE_SHA256:
        download(
            SHAKESPEARE_URL, path, SHAKESPEARE_SHA256, "fetch it elsewhere and run gpt2 prepare NAME --from FILE"
        )
    return [path]


def _python_standard_library(cache: Path, given: Path | None) -> list[Path]:
    """Every module of the running Python's standard library but tests and tables of characters, by path."""
    if given is not None:
        raise UserError("pystdlib is found on this machine and takes no --from")
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "pydoc_data", "encodings"}
    files = [p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts)]
    if not files:
        raise UserError(f"there is no Python source in {root}; prepare a text of your own: gpt2 prepare FILE")
    return sorted(files, key=lambda p: p.relative_to(root).as_posix())


CORPORA = {
    "shakespeare_char": Corpus("char", 0, _shakespeare),
    "shakespeare": Corpus("gpt2", 0, _shakespeare),
    "pystdlib": Corpus("bpe", 2048, _python_standard_library),
}
