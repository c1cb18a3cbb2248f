"""Text to token files: `train.bin` and `val.bin` in nanoGPT's format, `dataset.json` beside them."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2.data.corpora import CORPORA
from gpt2.data.sources import documents as read_documents
from gpt2.data.sources import find_files
from gpt2.errors import UserError
from gpt2.files import publish, sha256
from gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer, train_bpe

FORMAT = "gpt2 dataset 1"
REPLACEMENT = ".new"
"""Where the dataset that replaces another one grows, inside its folder."""
DEFAULT_VOCAB_SIZE = 4096
TOKENIZERS = ("char", "byte", "gpt2", "bpe")
CHUNK = 1 << 20
"""Characters encoded at a time, cut at a line's end so that the tokens are those of the whole text."""


def prepare(
    *sources: str | Path,
    out: Path,
    tokenizer: str | Tokenizer | None = None,
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    given: Path | None = None,
    field: str = "text",
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Tokenise a corpus by name, or files and folders of text, into the dataset folder `out`; returns it.

    Files are text, or JSON lines or Parquet with the text of a document in `field` of each row; see `data.sources`.
    tokenizer: `char`, `byte`, `gpt2` or `bpe`, which is trained here to `vocab_size` ids (4,096 unless
    given), or one there is already. A single text is split by characters, its end going to validation, as
    nanoGPT does. From many documents every so-manieth whole one goes to validation, and each is followed by
    end-of-text where the tokenizer has it. `given` is a local copy of a corpus that would be downloaded.
    `note` receives lines about progress. Raises UserError.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.1")
    if (out / "dataset.json").exists():
        if not overwrite:
            raise UserError(f"{out} already holds a dataset; choose another --out, or --overwrite to make it anew")
    elif out.exists() and not (out / REPLACEMENT).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and holds no dataset; choose another --out, so that nothing in it is lost")
    named = [str(source) for source in sources if str(source) in CORPORA]
    if named and len(sources) > 1:
        raise UserError(f"the corpus {named[0]} is prepared alone; leave the other sources out")
    if named:
        corpus = CORPORA[named[0]]
        files = corpus.documents(out.parent / ".downloads", given)
        tokenizer = tokenizer or corpus.tokenizer
        vocab_size = vocab_size if vocab_size is not None else corpus.vocab_size
    else:
        if given is not None:
            raise UserError(f"--from goes with a corpus that is downloaded: {', '.join(CORPORA)}")
        files = [file for source in sources for file in find_files(str(source))]
    tokenizer = tokenizer or "gpt2"
    if isinstance(tokenizer, str) and tokenizer not in TOKENIZERS:
        raise UserError(f"no tokenizer {tokenizer!r}; choose from {', '.join(TOKENIZERS)}")

    documents = [text for file in files for text in read_documents(file, field)]
    splits = dict(zip(("train", "val"), _split(documents, val_fraction), strict=True))
    encoder = _make_tokenizer(tokenizer, DEFAULT_VOCAB_SIZE if vocab_size is None else vocab_size, documents, splits)
    if encoder.vocab_size > 1 << 16:
        raise UserError(f"a vocabulary of {encoder.vocab_size} ids does not fit uint16 tokens; use at most 65536")
    size = f"{len(documents):,} documents, {sum(map(len, documents)):,} characters"
    note(f"{len(files)} files, {size}; {encoder.kind}, {encoder.vocab_size} ids")

    staged = out / REPLACEMENT if out.is_dir() and any(out.iterdir()) else out
    if staged != out and staged.exists():
        shutil.rmtree(staged)  # a replacement that was killed
    with publish(staged) as folder:
        folder.mkdir()
        counts = {}
        for split, pieces in splits.items():
            with (folder / f"{split}.bin").open("wb") as file:
                counts[split] = sum(_write(file, encoder, piece) for piece in pieces)
            note(f"{split}: {counts[split]:,} tokens")
        description = {
            "format": FORMAT,
            "source": " ".join(map(str, sources)),
            "documents": len(documents),
            "tokens": counts,
            "bytes": {split: sum(len(p.text.encode()) for p in pieces) for split, pieces in splits.items()},
            "sha256": {split: sha256(folder / f"{split}.bin") for split in splits},
            "vocab_size": encoder.vocab_size,
            "tokenizer": encoder.to_json(),
        }
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    if staged != out:
        (out / "dataset.json").unlink(missing_ok=True)  # until all are in place there is no dataset
        for name in ("train.bin", "val.bin", "dataset.json"):
            (staged / name).replace(out / name)
        staged.rmdir()
    return out


@dataclass(frozen=True)
class Piece:
    """A document, or a part of one; `ends` where end-of-text follows."""

    text: str
    ends: bool


def _split(documents: list[str], fraction: float) -> tuple[list[Piece], list[Piece]]:
    """Whole documents for validation where there are enough of them, else the end of the text."""
    pieces = [Piece(text, ends=len(documents) > 1) for text in documents]
    if len(pieces) * fraction >= 2:
        chosen = [int((i + 1) * fraction) > int(i * fraction) for i in range(len(pieces))]
        train = [p for p, is_val in zip(pieces, chosen, strict=True) if not is_val]
        return train, [p for p, is_val in zip(pieces, chosen, strict=True) if is_val]
    total = sum(map(len, documents))
    cut = int(total * (1 - fraction))
    if not 0 < cut < total:
        raise UserError(f"the text has {total} characters, too few to train and validate on; give more")
    start = 0
    for i, piece in enumerate(pieces):
        if cut < start + len(piece.text):
            head, tail = piece.text[: cut - start], piece.text[cut - start :]
            return [*pieces[:i], *([Piece(head, False)] if head else [])], [Piece(tail, piece.ends), *pieces[i + 1 :]]
        start += len(piece.text)
    raise AssertionError("the cut lies inside the text")


def _make_tokenizer(
    kind: str | Tokenizer, vocab_size: int, documents: list[str], splits: dict[str, list[Piece]]
) -> Tokenizer:
    if not isinstance(kind, str):
        return kind
    match kind:
        case "char":
            return CharTokenizer.train("".join(set().union(*map(set, documents))))
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return gpt2_tokenizer()
        case _:
            return train_bpe((piece.text for piece in splits["train"]), vocab_size)


def _write(file: BinaryIO, tokenizer: Tokenizer, piece: Piece) -> int:
    """Append the tokens of one document or part; returns how many."""
    count = 0
    for chunk in _chunks(piece.text):
        ids = np.array(tokenizer.encode(chunk), dtype="<u2")
        file.write(ids.tobytes())
        count += len(ids)
    if piece.ends and tokenizer.eot is not None:
        file.write(np.array([tokenizer.eot], dtype="<u2").tobytes())
        count += 1
    return count


def _chunks(text: str) -> Iterator[str]:
    """Cut text where GPT-2's pre-split always cuts: between a printable character and the newline after it."""
    start = 0
    while start < len(text):
        end = start + CHUNK
        while end < len(text) and not (text[end] == "\n" and not text[end - 1].isspace()):
            end += 1
        yield text[start:end]
        start = end
