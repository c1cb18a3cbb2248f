"""Text to token files, in the formats of nanoGPT, llm.c and build-nanogpt, and `dataset.json` beside them.

One road: files → pieces of documents (`sources`) → the split each goes to (`Split`) → tokens (`encode`) → files
(`writers`), with a journal of how far that has come (`staging`). What is held in memory does not grow with the text.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2.data.corpora import CORPORA, Corpus, Input, local, standard_input
from gpt2.data.sources import CHUNK, MAX_CHUNK, STANDARD_INPUT, find_files
from gpt2.data.staging import Staging, digest, staging
from gpt2.data.text import Mark, Place, Split, Text
from gpt2.data.tokenise import Job, tokenise
from gpt2.data.writers import FORMATS, Layout
from gpt2.errors import UserError
from gpt2.tokenizers import (
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    from_json,
    gpt2_tokenizer,
    train_bpe,
)

DEFAULT_VOCAB_SIZE = 4096
DEFAULT_VAL_FRACTION = 0.1
TOKENIZERS = ("char", "byte", "gpt2", "bpe")


def prepare(
    *sources: str | Path,
    out: Path,
    tokenizer: str | Tokenizer | None = None,
    vocab_size: int | None = None,
    format: str = "nanogpt",
    name: str | None = None,
    shard_size: int | None = None,
    val: Sequence[str | Path] = (),
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    field: str = "text",
    separator: str | None = None,
    part: tuple[int, int] = (1, 1),
    workers: int = 1,
    given: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, int], None] = lambda read, total, tokens: None,
) -> Path:
    """Tokenise a corpus by name, or files and folders of text, into the dataset folder `out`; returns it.

    tokenizer: `char`, `byte`, `gpt2` or `bpe`, which is trained here to `vocab_size` ids (4,096 unless given), or
    one there is already. format: `nanogpt` (train.bin and val.bin, end-of-text after each of several documents),
    `llmc` or `npy` (shards of `shard_size` tokens called after `name`, end-of-text before each document). field,
    separator: see `sources.pieces`.

    Validation gets the sources `val`; or the first `val_tokens` of all; or `val_fraction` (0.1) of the documents,
    evenly spread, and of a few documents the end of the text, cut by characters as nanoGPT does.

    part: `(i, n)` does the i-th of n parts of the files, for `data.join`. workers: processes that encode; the result
    does not depend on it. given: a local copy of a corpus that would be downloaded.

    Killed and called again, it goes on where it was. `note` receives lines, `progress` the bytes read, those there
    are to read, and the tokens written. Raises UserError.
    """
    corpus, inputs = find_inputs(sources, val, given, note)
    chosen: dict[str, Any] = {"name": default_name(sources[0])}
    if corpus:
        chosen |= {**corpus.settings, **corpus.settings_of.get(format, {})}
    if val_fraction is not None or val_tokens is not None:
        chosen = {key: value for key, value in chosen.items() if key not in ("val_fraction", "val_tokens")}
    asked = {"name": name, "shard_size": shard_size, "separator": separator}
    asked |= {"val_fraction": val_fraction, "val_tokens": val_tokens}
    chosen |= {key: value for key, value in asked.items() if value is not None}
    kind = tokenizer or (corpus.tokenizer if corpus else "gpt2")
    if vocab_size is not None and kind != "bpe":
        raise UserError(
            f"vocab_size={vocab_size} is of a tokenizer trained here; add --tokenizer=bpe, or leave it out"
        )
    if vocab_size is None:
        vocab_size = (corpus.vocab_size if corpus else None) or DEFAULT_VOCAB_SIZE
    _check(chosen, format, kind, inputs, part, workers)
    is_large = corpus is not None and corpus.is_large
    if is_large and kind in ("char", "bpe"):
        raise UserError(f"{sources[0]} is read only once, which makes no {kind} tokenizer; name one there is already")

    recipe = {
        "inputs": [(Path(i.name).name, i.size, i.split) for i in inputs],
        "settings": [chosen, format, field],
        "tokenizer": [kind, vocab_size] if isinstance(kind, str) else kind.to_json(),
    }
    here = {"paths": [(i.name, i.version) for i in inputs], "part": part}
    with staging(out, recipe | here, overwrite) as place:
        if not place.is_whole:
            has_own_pattern = isinstance(kind, BPETokenizer) and kind.pattern != GPT2_PATTERN
            text = Text(
                inputs,
                place.folder,
                field,
                chosen.get("separator"),
                corpus.heading if corpus else None,
                MAX_CHUNK if has_own_pattern else CHUNK,  # where text may be cut is known of GPT-2's pattern only
                part,
            )
            survey = _survey(text, chosen, kind == "char", is_large, progress)
            encoder = _make_tokenizer(kind, vocab_size, place, text, survey, progress)
            layout = _layout(format, chosen, encoder)
            note(f"{len(text.numbers)} files, {text.size():,} bytes; {encoder.kind}, {encoder.vocab_size} ids")
            about = {"source": " ".join(map(str, sources)), "recipe": digest(recipe)}
            job = Job(place, text, survey.split, survey.is_single, encoder, layout, about)
            try:
                counts = tokenise(job, workers, progress)
            except KeyboardInterrupt:
                kept = (
                    "the same command goes on from here"
                    if "mark" in place.journal
                    else "there is nothing to keep yet"
                )
                note(f"stopped; {kept}")
                raise
            for split, tokens in counts.items():
                note(f"{split}: {tokens:,} tokens")
        place.move_into_place()
    return out


def default_name(source: str | Path) -> str:
    """What the dataset of a source is called unless the user says otherwise."""
    name = "" if str(source) == STANDARD_INPUT else Path(source).resolve().name
    return name.lstrip(".").split(".")[0] or "text"


def find_inputs(
    sources: Sequence[str | Path],
    val: Sequence[str | Path] = (),
    given: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Corpus | None, list[Input]]:
    """The corpus that is named, if one is, and the files of all sources in order, each once.

    Those of `val` are not among the others. Raises UserError.
    """
    if not sources:
        raise UserError("nothing to read; name a corpus, or files and folders of text")
    named = [str(source) for source in sources if str(source) in CORPORA]
    if named and (len(sources) > 1 or val):
        raise UserError(f"the corpus {named[0]} is prepared alone; leave the other sources out")
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
    """Where the files of a source really are, so that each is known again."""
    if source == STANDARD_INPUT:
        return [Path(source)]
    if not Path(source).exists():
        raise UserError(
            f"no corpus, file or folder {source!r}; corpora by name: {', '.join(CORPORA)}; - is standard input"
        )
    return [path.resolve() for path in find_files(source, note)]


def _input(path: Path, split: str | None) -> Input:
    return replace(standard_input(), split=split) if str(path) == STANDARD_INPUT else local(path, split)


def _check(
    chosen: dict[str, Any],
    format: str,
    kind: str | Tokenizer,
    inputs: Sequence[Input],
    part: tuple[int, int],
    workers: int,
) -> None:
    """Raise UserError for settings that cannot work or contradict each other."""
    if format not in FORMATS:
        raise UserError(f"no format {format!r}; choose from {', '.join(FORMATS)}")
    if isinstance(kind, str) and kind not in TOKENIZERS:
        raise UserError(f"no tokenizer {kind!r}; choose from {', '.join(TOKENIZERS)}")
    fraction, tokens = chosen.get("val_fraction"), chosen.get("val_tokens")
    if any(i.split for i in inputs) + (fraction is not None) + (tokens is not None) > 1:
        raise UserError("validation text is given in two ways; keep one of --val, --val_tokens and --val_fraction")
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(f"val_fraction is {fraction}; it must lie between 0 and 1, for example 0.1")
    if tokens is not None and tokens < 1:
        raise UserError(f"val_tokens is {tokens}; it must be at least 1")
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    if chosen.get("separator") == "":
        raise UserError("the separator is empty; leave --separator out")
    size = chosen.get("shard_size")
    if format == "nanogpt" and size:
        raise UserError("nanoGPT reads one file a split; leave --shard_size out, or choose --format=llmc or npy")
    if size is not None and size < 0:
        raise UserError(f"shard_size is {size}; it must be a number of tokens, or 0 for one file a split")
    if not chosen["name"] or "/" in chosen["name"]:
        raise UserError(f"the name {chosen['name']!r} cannot begin a file's name; give another --name")
    i, n = part
    if not 1 <= i <= n:
        raise UserError(f"part {i}/{n} is none; of 4 parts the first is 1/4 and the last 4/4")
    if n > len(inputs):
        raise UserError(
            f"{len(inputs)} files cannot be shared by {n} machines; split them further, or use fewer parts"
        )


@dataclass(frozen=True)
class Survey:
    """What has to be known of the text before any of it is tokenised."""

    split: Split
    is_single: bool
    """Whether it is one document."""
    alphabet: str
    """Its characters, where they are wanted."""


def _survey(
    text: Text,
    chosen: dict[str, Any],
    wants_alphabet: bool,
    is_large: bool,
    progress: Callable[[int, int, int], None],
) -> Survey:
    """Read as much of the text, of all parts, as decides how it is split. Raises UserError."""
    tokens, fraction = chosen.get("val_tokens", 0), chosen.get("val_fraction", DEFAULT_VAL_FRACTION)
    is_by_documents = not tokens and not any(i.split for i in text.inputs)
    split = Split(tokens=tokens) if tokens else Split(fraction)
    if is_large:
        return Survey(split, is_single=False, alphabet="")
    enough = math.ceil(2 / fraction) if is_by_documents else 2
    mark, alphabet = Mark(), set[str]()
    for place, mark in _watched(text, progress):
        if wants_alphabet:
            alphabet.update(place.piece.text)
        elif mark.documents >= enough:
            break
    if is_by_documents and mark.documents < enough:
        split = Split(cut=int(mark.characters * (1 - fraction)))
        if text.part[1] > 1:
            raise UserError(f"{mark.documents} documents are too few to share between machines; leave --part out")
    return Survey(split, mark.documents == 1, "".join(sorted(alphabet)))


def _watched(text: Text, progress: Callable[[int, int, int], None]) -> Iterator[tuple[Place, Mark]]:
    """All parts of the text, read without tokens coming of it."""
    everything = replace(text, part=(1, 1))
    total = everything.size()
    for place, mark in everything.read():
        progress(mark.read, total, 0)
        yield place, mark


def _make_tokenizer(
    kind: str | Tokenizer,
    vocab_size: int,
    place: Staging,
    text: Text,
    survey: Survey,
    progress: Callable[[int, int, int], None],
) -> Tokenizer:
    """The tokenizer that is asked for. A BPE is trained on the training text of all parts, once."""
    if not isinstance(kind, str):
        return kind
    match kind:
        case "char":
            return CharTokenizer(survey.alphabet)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return gpt2_tokenizer()
    if "tokenizer" not in place.journal:
        assigned = itertools.chain.from_iterable(survey.split(where) for where, _ in _watched(text, progress))
        trained = train_bpe((piece.text for name, piece in assigned if name != "val"), vocab_size)
        place.record(tokenizer=trained.to_json())
    return from_json(place.journal["tokenizer"])


def _layout(format: str, chosen: dict[str, Any], tokenizer: Tokenizer) -> Layout:
    is_wide = tokenizer.vocab_size > 1 << 16
    if is_wide and format == "nanogpt":
        raise UserError(
            f"a vocabulary of {tokenizer.vocab_size} ids does not fit nanoGPT's uint16 tokens; use at most 65536, "
            "or --format=npy"
        )
    shard_size = chosen.get("shard_size", FORMATS[format].shard_size)
    return Layout(format, chosen["name"], shard_size, "<u4" if is_wide else "<u2")
