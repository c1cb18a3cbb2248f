"""Prepares text as token files in the formats of nanoGPT, llm.c and build-nanogpt, with a `dataset.json`.

The stages are: files → pieces of documents (`sources`) → the split of each piece (`Split`) → tokens (`encode`) →
files (`writers`). A journal (`staging`) records the progress. The memory in use does not grow with the text.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from gpt2.chat import MARKERS, with_speakers
from gpt2.data.corpora import Corpus, Input
from gpt2.data.inputs import default_name, find_inputs
from gpt2.data.sources import CHUNK, MAX_CHUNK, Reading, has_rows
from gpt2.data.staging import Staging, digest, staging
from gpt2.data.text import LocatedPiece, Mark, Split, Text
from gpt2.data.tokenise import Job, tokenise
from gpt2.data.tokenizer_choice import TOKENIZERS, for_chat, special_tokens, tokenizer_choice
from gpt2.data.writers import FORMATS, Layout
from gpt2.errors import UserError
from gpt2.special_tokens import END_OF_TEXT
from gpt2.spelling import counted
from gpt2.tokenizers import (
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    from_json,
    gpt2_tokenizer,
    require_bpe,
    train_bpe,
)

DEFAULT_VAL_FRACTION = 0.1
LONG_DOCUMENT = 1000
"""Average number of characters of a few documents from which on each of them gives its end for validation."""
READING = 2
"""Version of how text is divided into pieces, which a journal counts."""


def prepare(
    *sources: str | Path,
    out: str | PathLike[str],
    tokenizer: str | Tokenizer | None = None,
    vocab_size: int | None = None,
    format: str = "nanogpt",
    name: str | None = None,
    shard_size: int | None = None,
    val: str | Path | Sequence[str | Path] = (),
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    field: str = "text",
    separator: str | None = None,
    parse_special: bool | None = None,
    chat: bool = False,
    part: tuple[int, int] = (1, 1),
    workers: int = 1,
    given: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int, int], None] = lambda read, total, tokens: None,
) -> Path:
    """Tokenise a corpus by name, or files and folders of text, into the dataset folder `out`; return `out`.

    tokenizer: `char`, `byte`, `gpt2`, or `bpe`, which is trained on the text to `vocab_size` ids (default 4,096); or
    an existing tokenizer. format: `nanogpt` (train.bin and val.bin, end-of-text after each of several documents), or
    `llmc` or `npy` (shards of `shard_size` tokens named after `name`, end-of-text before each document). field,
    separator: see `sources.pieces`.

    The validation split is the text of `val`, one source or several; or the first `val_tokens` of all; or
    `val_fraction` (0.1) of the documents, evenly spread. With few documents it is the end of each of them, or of the
    text if that is short or a single document, cut by characters as in nanoGPT. Of a few conversations it is the last
    one.

    parse_special: whether the text of a special token, such as `<|user|>`, becomes that token. By default only for a
    tokenizer that has other special tokens than `<|endoftext|>`, so that text from the web cannot contain any.

    chat: the rows hold conversations, as lists of messages in `field` (by default `messages`). They become text by
    `chat.conversation`, and the tokenizer, a BPE, gets the special tokens of the speakers.

    part: `(i, n)` prepares the i-th of n partitions of the files, for `data.join`. workers: number of processes that
    encode, on which the result does not depend. given: a local copy of a corpus that would be downloaded.
    A call after a kill continues the work. `note` receives lines about the work; `progress` receives the number of
    bytes read, the number to read, and the number of tokens written. Raises UserError.
    """
    corpus, inputs = find_inputs(sources, [val] if isinstance(val, str | Path) else val, given, note)
    asked = {"name": name, "shard_size": shard_size, "separator": separator}
    asked |= {"val_fraction": val_fraction, "val_tokens": val_tokens}
    settings = _settings(default_name(sources[0]), corpus, format, asked)
    kind, vocab_size = tokenizer_choice(tokenizer, vocab_size, corpus, sources[0])
    if chat:
        kind, field, parse_special = for_chat(kind, field, parse_special, inputs)
    _check(settings, format, kind, inputs, part, workers)
    if kind == "bpe":  # before the time that reading takes
        require_bpe(vocab_size, MARKERS if chat else ())
    if field != "text" and not any(has_rows(Path(i.name)) for i in inputs):
        raise UserError(f"--field={field} is for files of rows (.jsonl, .json, .csv, .tsv, .parquet); omit it")
    recipe: dict[str, Any] = {
        "inputs": [(Path(i.name).name, i.size, i.split) for i in inputs],
        "settings": [settings, format, field],
        "tokenizer": [kind, vocab_size] if isinstance(kind, str) else kind.to_json(),
    }
    if parse_special is not None:
        recipe["parse_special"] = parse_special
    if chat:
        recipe["chat"] = True
    markers = special_tokens(kind) | ({*MARKERS} if chat else set())
    parse_special = bool(markers - {END_OF_TEXT}) if parse_special is None else parse_special
    local_recipe = {"paths": [(i.name, i.version) for i in inputs], "part": part, "reading": READING}
    with staging(Path(out), recipe | local_recipe, overwrite) as area:
        if not area.is_complete:
            heading, is_large = (corpus.heading, corpus.is_large) if corpus else (None, False)
            reading = _reading(kind, field, settings.get("separator"), markers if parse_special else (), chat)
            text = Text(inputs, area.folder, reading, heading, part)
            survey = _survey(text, settings, kind == "char", is_large, progress)
            encoder = _make_tokenizer(kind, vocab_size, area, text, survey, progress)
            about = {"source": " ".join(map(str, sources)), "recipe": digest(recipe)}
            layout = _layout(format, settings, encoder)
            job = Job(area, text, survey.split, survey.is_single, encoder, parse_special, layout, about)
            _run(job, workers, note, progress)
        area.move_into_place()
    return Path(out)


def _settings(name: str, corpus: Corpus | None, format: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the corpus for this format, replaced by those that the user asked for."""
    settings: dict[str, Any] = {"name": name}
    if corpus:
        settings |= {**corpus.settings, **corpus.settings_of.get(format, {})}
    given = {key: value for key, value in asked.items() if value is not None}
    if {"val_fraction", "val_tokens"} & given.keys():
        settings = {key: value for key, value in settings.items() if key not in ("val_fraction", "val_tokens")}
    return settings | given


def _reading(
    kind: str | Tokenizer, field: str, separator: str | None, markers: Collection[str], is_chat: bool
) -> Reading:
    """Return how the text is read for a tokenizer. For a BPE, possible cuts are known for GPT-2's pattern only."""
    is_other = isinstance(kind, BPETokenizer) and kind.pattern != GPT2_PATTERN
    end = None if isinstance(kind, str) else kind.special.named(kind.eot)
    return Reading(
        field,
        separator,
        end or END_OF_TEXT,
        markers=tuple(markers),
        chunk=MAX_CHUNK if is_other else CHUNK,
        anywhere=(kind if isinstance(kind, str) else kind.kind) in ("char", "byte"),
        is_chat=is_chat,
        words=frozenset() if isinstance(kind, str) else kind.special.words,
    )


def _run(job: Job, workers: int, note: Callable[[str], None], progress: Callable[[int, int, int], None]) -> None:
    """Tokenise the text, and report its size and the result."""
    text, encoder = job.text, job.tokenizer
    note(f"{counted(len(text.numbers), 'file')}, {text.size():,} bytes; {encoder.kind}, {encoder.vocab_size} ids")
    if (few := len(job.split.cuts)) > 1:
        note(f"there are only {few} documents: the end of each of them is for validation")
    try:
        counts = tokenise(job, workers, note, progress)
    except KeyboardInterrupt:
        is_recorded = "mark" in job.staging.journal
        note(f"stopped; {'the same command continues from here' if is_recorded else 'nothing was recorded yet'}")
        raise
    for split, tokens in counts.items():
        note(f"{split}: {counted(tokens, 'token')}")
    if line := _about_special_tokens(job, Counter(job.staging.description()["special_tokens"])):
        note(line)


def _about_special_tokens(job: Job, found: Counter[str]) -> str | None:
    """Return a line about the special tokens in the text; None where there is nothing to say."""
    markers = [text for text in job.tokenizer.special.ids if found[text]]
    listed = ", ".join(f"{text} {counted(found[text], 'time')}" for text in markers)
    if job.parse_special:
        return f"special tokens in the text: {listed or 'none'}"
    if listed:
        return f"the text contains {listed}, as ordinary characters; --parse_special makes them special tokens"
    return None


def _check(
    settings: dict[str, Any],
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
    fraction, tokens = settings.get("val_fraction"), settings.get("val_tokens")
    if any(i.split for i in inputs) + (fraction is not None) + (tokens is not None) > 1:
        raise UserError("validation text is given in two ways; keep one of --val, --val_tokens and --val_fraction")
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(f"val_fraction is {fraction}; it must lie between 0 and 1, for example 0.1")
    if tokens is not None and tokens < 1:
        raise UserError(f"val_tokens is {tokens}; it must be at least 1")
    if workers < 1:
        raise UserError(f"workers is {workers}; it must be at least 1")
    if settings.get("separator") == "":
        raise UserError("the separator is empty; omit --separator")
    size = settings.get("shard_size")
    if format == "nanogpt" and size:
        raise UserError("nanoGPT reads one file per split; omit --shard_size, or choose --format=llmc or npy")
    if size is not None and size < 0:
        raise UserError(f"shard_size is {size}; it must be a number of tokens, or 0 for one file per split")
    if not settings["name"] or "/" in settings["name"]:
        raise UserError(f"the name {settings['name']!r} cannot be part of a file's name; give another --name")
    i, n = part
    if not 1 <= i <= n:
        raise UserError(f"there is no part {i}/{n}; the first of 4 parts is 1/4 and the last 4/4")
    if n > len(inputs):
        raise UserError(
            f"{counted(len(inputs), 'file')} cannot be shared by {n} machines; split them further, or use fewer parts"
        )


@dataclass(frozen=True)
class Survey:
    """Holds what must be known about the text before it is tokenised."""

    split: Split
    is_single: bool
    """Whether the text is a single document."""
    alphabet: str
    """Characters of the text in order, for a character tokenizer; otherwise empty."""


def _survey(
    text: Text,
    settings: dict[str, Any],
    wants_alphabet: bool,
    is_large: bool,
    progress: Callable[[int, int, int], None],
) -> Survey:
    """Read the text of all partitions, as far as needed to decide how it is split. Raises UserError."""
    tokens, fraction = settings.get("val_tokens", 0), settings.get("val_fraction", DEFAULT_VAL_FRACTION)
    is_by_documents = not tokens and not any(i.split for i in text.inputs)
    split = Split(tokens=tokens) if tokens else Split(fraction)
    if is_large:
        return Survey(split, is_single=False, alphabet="")
    enough = math.ceil(2 / fraction) if is_by_documents else 2
    mark, alphabet, begins = Mark(), set[str](), list[int]()
    for located, mark in _watched(text, progress):
        if located.piece.starts and len(begins) < enough:
            begins.append(located.characters)
        if wants_alphabet:
            alphabet.update(located.piece.text)
        elif mark.documents >= enough:
            break
    if is_by_documents and mark.documents < enough:
        is_long = bool(begins) and mark.characters >= LONG_DOCUMENT * mark.documents
        ends = [*begins[1:], mark.characters]
        spans = list(zip(begins, ends, strict=True)) if is_long else [(0, mark.characters)]
        cuts = tuple((begin, begin + int((end - begin) * (1 - fraction))) for begin, end in spans)
        if text.reading.is_chat:  # of so few, `fraction` is less than two
            if len(begins) < 2:
                raise UserError(
                    f"there {'is 1 conversation' if begins else 'are no conversations'}, and training and validation "
                    "need one each; give more, or name those for validation with --val"
                )
            cuts = ((0, begins[-1]),)
        split = Split(cuts=cuts, markers=text.reading.markers)
        if text.partition[1] > 1:
            raise UserError(
                f"the text has {counted(mark.documents, 'document')}, too few to share between machines; omit --part"
            )
    return Survey(split, mark.documents == 1, "".join(sorted(alphabet)))


def _watched(text: Text, progress: Callable[[int, int, int], None]) -> Iterator[tuple[LocatedPiece, Mark]]:
    """Yield the text of all partitions, and report the progress of reading it."""
    everything = replace(text, partition=(1, 1))
    total = everything.size()
    for located, mark in everything.read():
        progress(mark.read, total, 0)
        yield located, mark


def _make_tokenizer(
    kind: str | Tokenizer,
    vocab_size: int,
    area: Staging,
    text: Text,
    survey: Survey,
    progress: Callable[[int, int, int], None],
) -> Tokenizer:
    """Return the requested tokenizer. A BPE is trained once, on the training text of all partitions."""
    if not isinstance(kind, str):
        return kind
    match kind:
        case "char":
            return CharTokenizer(survey.alphabet)
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return gpt2_tokenizer()
    if "tokenizer" not in area.journal:
        assigned = itertools.chain.from_iterable(survey.split(located) for located, _ in _watched(text, progress))
        texts = (piece.text for name, piece in assigned if name != "val")
        is_chat = text.reading.is_chat
        trained = with_speakers(train_bpe(texts, vocab_size, MARKERS)) if is_chat else train_bpe(texts, vocab_size)
        area.record(tokenizer=trained.to_json())
    return from_json(area.journal["tokenizer"])


def _layout(format: str, settings: dict[str, Any], tokenizer: Tokenizer) -> Layout:
    is_wide = tokenizer.vocab_size > 1 << 16
    if is_wide and format == "nanogpt":
        raise UserError(
            f"a vocabulary of {tokenizer.vocab_size} ids does not fit nanoGPT's uint16 tokens; use at most 65536, "
            "or --format=npy"
        )
    shard_size = settings.get("shard_size", FORMATS[format].shard_size)
    return Layout(format, settings["name"], shard_size, "<u4" if is_wide else "<u2")
