"""Asks before a corpus of gigabytes is downloaded, and prepares one before processes are started."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.spelling import counted

if TYPE_CHECKING:
    from gpt2.data.corpora import Corpus

TOKENS_PER_SECOND = 2_000_000
"""Approximate number of tokens that a core encodes in a second."""


def ask_for_corpus(dataset: str, data_dir: str, yes: bool) -> None:
    """Say what the preparation of a large corpus takes, where it is missing, and ask on a terminal whether to go on.

    `yes` answers the question. Raises UserError for the answer no, and where there is no terminal to ask on.
    """
    from gpt2.data.corpora import TOKEN_BYTES

    corpus = _missing(dataset, data_dir)
    if corpus is None or not corpus.is_large:
        return
    hours = corpus.tokens / TOKENS_PER_SECOND / (os.cpu_count() or 1) / 3600
    note(
        f"the corpus {dataset} is not prepared yet: a download of {corpus.size / 1e9:,.1f} GB, about "
        f"{corpus.tokens * TOKEN_BYTES / 1e9:,.1f} GB in {data_dir} afterwards, and {_duration(hours)} of work "
        "besides the download"
    )
    if yes:
        return
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            f"a large download is not begun unasked; add --yes, or prepare it first: gpt2 prepare {dataset}"
        )
    note("go on? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was downloaded; --dataset names text of yours, and gpt2 list shows what there is")


def prepare_corpus(dataset: str, data_dir: str) -> None:
    """Prepare a corpus that is missing. Several processes would wait for one of them, and only some minutes."""
    from gpt2.data.dataset import open_dataset

    if _missing(dataset, data_dir) is not None:
        open_dataset(dataset, data_dir, note)


def _missing(dataset: str, data_dir: str) -> "Corpus | None":
    """Return the corpus of that name if it is not prepared. It is not opened, which takes time for a large one."""
    from gpt2.data.corpora import CORPORA
    from gpt2.data.dataset import is_dataset

    is_there = any(path.is_dir() and is_dataset(path) for path in (Path(dataset), Path(data_dir) / dataset))
    return None if is_there else CORPORA.get(dataset)


def _duration(hours: float) -> str:
    """Return a rough duration in words."""
    return f"about {hours:.0f} hours" if hours >= 1.5 else f"about {counted(max(1, round(60 * hours)), 'minute')}"
