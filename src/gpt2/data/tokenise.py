"""The main loop of a preparation: text to batches to tokens to files, with a journal of its progress."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from gpt2.data.encode import BATCH, Batch, Encoded, Rules, encode
from gpt2.data.sources import Piece, has_rows
from gpt2.data.staging import Staging
from gpt2.data.text import UNDIVIDED, Mark, Split, Text
from gpt2.data.writers import FORMATS, Layout, SplitWriter, first_number
from gpt2.errors import SPACE_ERRORS, UserError
from gpt2.files import free_bytes
from gpt2.spelling import counted
from gpt2.tokenizers import Tokenizer

RECORD_SECONDS = 10.0
"""Approximate number of seconds of work that a kill can cost."""
PIECE_COST = 64
"""Characters added to the size of each piece, so that a batch of very short pieces stays small too."""
PROBE = 4
"""Number of batches after which the size of the result is estimated."""


@dataclass(frozen=True)
class Job:
    """A job is a preparation with all its settings determined."""

    staging: Staging
    text: Text
    split: Split
    is_single: bool
    """Whether the text is one document."""
    tokenizer: Tokenizer
    parse_special: bool
    """Whether the text of a special token becomes that token, and not ordinary ones."""
    layout: Layout
    about: dict[str, Any]
    """Further entries of dataset.json."""

    @property
    def eot(self) -> str:
        """Return the position of end-of-text in a document: `first`, `last` or `none`."""
        if FORMATS[self.layout.format].eot_first:
            return "first"
        return "none" if self.is_single else "last"

    @property
    def val_tokens(self) -> int:
        """Return the number of tokens at the beginning of this partition that are for validation."""
        return self.split.tokens if self.text.partition[0] == 1 else 0

    def writers(self) -> dict[str, SplitWriter]:
        """Return the writer of each split."""
        first = first_number(self.val_tokens, self.layout)
        return {
            "train": SplitWriter(self.staging.folder, self.layout, "train", first),
            "val": SplitWriter(self.staging.folder, self.layout, "val"),
        }


@dataclass
class Progress:
    """Holds the state of a running preparation."""

    writers: dict[str, SplitWriter]
    text_bytes: dict[str, int]
    """Number of bytes of text written as tokens, by split."""
    mark: Mark
    """Position in the text up to which tokens are written."""
    special: Counter[str]
    """How often the text contains each special token."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens written."""
        return sum(writer.tokens for writer in self.writers.values())


def tokenise(
    job: Job, workers: int, note: Callable[[str], None], progress: Callable[[int, int, int], None]
) -> dict[str, int]:
    """Fill the staging folder with the complete dataset, continuing from its journal; return the tokens by split.

    `note` receives lines about rows without text and the like. `progress` receives the number of bytes read, the
    number to read, and the number of tokens written. Raises UserError.
    """
    area, text = job.staging, job.text
    done = Progress(job.writers(), {"train": 0, "val": 0}, Mark(file=text.numbers.start), Counter())
    if "mark" in area.journal:
        done.mark, done.text_bytes = Mark(**area.journal["mark"]), area.journal["text_bytes"]
        done.special = Counter(area.journal["special"])
        for name, writer in done.writers.items():
            writer.restore(area.journal["splits"][name])
    lengths = _byte_lengths(job.tokenizer)
    total = text.size()
    encoded = encode(_batches(text, job.split, done.mark), job.tokenizer, Rules(job.eot, job.parse_special), workers)
    progress(done.mark.read, total, done.tokens)
    try:
        first = list(itertools.islice(encoded, PROBE))
        _check_disk(job, first, done)
        recorded = monotonic()
        for batch, found in itertools.chain(first, encoded):
            is_full = False
            done.special += found.found
            for name, ids in _divided(found.tokens, done.writers["val"], job.val_tokens):
                is_full |= done.writers[name].append(ids)
                done.text_bytes[name] += int(lengths[ids].sum())
            done.mark = batch.mark
            progress(done.mark.read, total, done.tokens)
            if is_full or monotonic() - recorded > RECORD_SECONDS:
                _record(job, done)
                recorded = monotonic()
        for writer in done.writers.values():
            writer.finish()
    except OSError as error:
        if error.errno not in SPACE_ERRORS:
            raise
        kept = "continues from its journal" if "mark" in area.journal else "starts again"
        where, free = error.filename or area.out, free_bytes(area.out)
        raise UserError(
            f"the disk of {area.out} is full after {done.tokens:,} tokens; make room and run the same command "
            f"again: it {kept} ({where}: {error.strerror}, {free:,} bytes are free)"
        ) from None
    finally:
        encoded.close()
        for writer in done.writers.values():
            writer.abandon()
    files = {name: writer.written for name, writer in done.writers.items() if writer.written}
    if done.writers["val"].tokens < job.val_tokens or (len(files) < 2 and text.partition == (1, 1)):
        area.forget()
        where = "the text" if text.partition == (1, 1) else "the first part"
        raise UserError(
            f"{where} has {counted(done.mark.characters, 'character')}, too few to train and validate on; give "
            "more, or use less for validation"
        )
    for line in _remarks(text, done.mark):
        note(line)
    about = {"documents": done.mark.documents, "bytes": {name: done.text_bytes[name] for name in files}}
    about |= {"part": text.partition, "val_tokens": job.split.tokens}
    about |= {"special_tokens": dict(done.special), "parse_special": job.parse_special}
    return area.complete(files, job.layout, job.tokenizer, **job.about, **about)


def _byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of bytes of text that each id stands for, int64 (vocab_size,); 0 for end-of-text."""
    ids = range(tokenizer.vocab_size)
    return np.array([0 if i == tokenizer.eot else len(tokenizer.decode_bytes([i])) for i in ids])


def _batches(text: Text, split: Split, start: Mark) -> Iterator[Batch]:
    """Yield the text from `start` on, in batches that are large enough to send to another process."""
    held: list[tuple[str, Piece]] = []
    size, mark = 0, start
    for located, mark in text.read(start):
        held += split(located)
        size += len(located.piece.text) + PIECE_COST
        if size >= BATCH:
            yield Batch(held, mark)
            held, size = [], 0
    if size:
        yield Batch(held, mark)


def _remarks(text: Text, mark: Mark) -> Iterator[str]:
    """Yield a line about rows without text, and one about a separator that does not occur."""
    if mark.missing:
        yield f"{counted(mark.missing, 'row')} without text skipped"
    names = [text.inputs[number].name for number in text.numbers]
    names = [name for name in names if not has_rows(Path(name))]
    if text.reading.separator and names and not mark.separated:
        where = f"{names[0]}: it" if len(names) == 1 else f"the {len(names)} files of text: each"
        yield f"the separator {text.reading.separator!r} does not occur in {where} is one document"


def _divided(tokens: dict[str, np.ndarray], val: SplitWriter, val_tokens: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tokens of a batch by split; the first `val_tokens` of the undivided ones are for validation."""
    for name, ids in tokens.items():
        if name == UNDIVIDED:
            wanted = max(0, val_tokens - val.tokens)
            yield "val", ids[:wanted]
            yield "train", ids[wanted:]
        else:
            yield name, ids


def _check_disk(job: Job, first: Sequence[tuple[Batch, Encoded]], done: Progress) -> None:
    """Raise UserError where the estimate from the first batches does not fit the disk.

    Files of other kinds than those read so far are omitted from it, because their compression may differ.
    """
    if not first:
        return
    begun, mark = done.mark, first[-1][0].mark
    inputs = {number: job.text.inputs[number] for number in job.text.numbers}
    kinds = {Path(inputs[number].name).suffix for number in range(begun.file, mark.file + 1)}
    alike = sum(i.size for n, i in inputs.items() if n >= begun.file and Path(i.name).suffix in kinds)
    tokens = sum(len(ids) for _, encoded in first for ids in encoded.tokens.values())
    expected = tokens * alike // max(mark.read - begun.read, 1)
    copies = sorted(i.size for i in inputs.values() if i.copy)
    needed = expected * np.dtype(job.layout.dtype).itemsize + sum(copies[-2:])
    free = free_bytes(job.staging.folder)
    if needed > free:
        raise UserError(
            f"{job.staging.out} needs about {needed:,} bytes for {expected:,} tokens, and {free:,} are free there; "
            "make room, or choose another --out"
        )


def _record(job: Job, done: Progress) -> None:
    """Record up to where the files are valid, and delete the downloads that need not be read again."""
    job.staging.record(
        mark=asdict(done.mark),
        text_bytes=done.text_bytes,
        special=done.special,
        splits={name: writer.state() for name, writer in done.writers.items()},
    )
    for number in range(job.text.numbers.start, done.mark.file):
        job.text.discard(number)
