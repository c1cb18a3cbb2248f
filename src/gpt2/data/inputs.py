"""The files that a preparation reads: those of a corpus by name, or those that the user names."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gpt2.data.corpora import CORPORA, Corpus, Input, local, standard_input
from gpt2.data.sources import STANDARD_INPUT, find_files
from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.spelling import did_you_mean


def default_name(source: str | Path) -> str:
    """Return the default name of the dataset of a source."""
    name = "" if str(source) == STANDARD_INPUT else Path(os.path.realpath(source)).name
    return name.lstrip(".").split(".")[0] or "text"


def find_inputs(
    sources: Sequence[str | Path],
    val: Sequence[str | Path] = (),
    given: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Corpus | None, list[Input]]:
    """Return the named corpus, or None, and the files of all sources in order without repetition.

    Files of `val` are for validation alone. `given` is a local copy of a corpus; `note` receives a line about files
    that are omitted. Raises UserError.
    """
    if not sources:
        raise UserError("nothing to read; name a corpus, or files and folders of text")
    named = [str(source) for source in sources if str(source) in CORPORA]
    if named and (len(sources) > 1 or val):
        raise UserError(f"the corpus {named[0]} is prepared alone; omit the other sources")
    if named:
        corpus = CORPORA[named[0]]
        return corpus, corpus.inputs(given)
    if given is not None:
        raise UserError(f"--from goes with a corpus that is downloaded: {', '.join(CORPORA)}")
    held_out = {path: "val" for source in val for path in _files(str(source), note)}
    trained = {path: "train" for source in sources for path in _files(str(source), note) if path not in held_out}
    if not trained:
        raise UserError("all of the text is for validation; give other text to train on")
    splits = trained | held_out
    return None, [_input(path, split if held_out else None) for path, split in splits.items()]


def _files(source: str, note: Callable[[str], None]) -> list[Path]:
    """Return the resolved paths of the files of a source, by which repetitions are recognised."""
    if source == STANDARD_INPUT:
        return [Path(source)]
    if not Path(source).exists():
        names = f"corpora by name: {', '.join(CORPORA)}; - is standard input"
        raise UserError(f"no corpus, file or folder {source!r}; {did_you_mean(source, CORPORA, names)}")
    if saved_steps(Path(source)):
        raise UserError(
            f"{source} is the folder of a run, and no text to train on; name the files to read one by one"
        )
    return [Path(os.path.realpath(path)) for path in find_files(source, note)]


def _input(path: Path, split: str | None) -> Input:
    return replace(standard_input(), split=split) if str(path) == STANDARD_INPUT else local(path, split)
