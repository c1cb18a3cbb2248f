"""Text to token files: `train.bin` and `val.bin` in nanoGPT's format, `dataset.json` beside them."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2.data.corpora import CORPORA
from gpt2.errors import UserError
from gpt2.files import publish, sha256
from gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer, train_bpe

TOKENIZERS = ("char", "byte", "gpt2", "bpe")
TEXT_SUFFIXES = {
    ".txt",
    ".md",
    ".rst",
    ".py",
    ".c",
    ".h",
    ".cpp",
    ".js",
    ".ts",
    ".java",
    ".go",
    ".rs",
    ".tex",
}
CHUNK = 1 << 20
"""Characters encoded at a time, cut at a line's end so that the tokens are those of the whole text."""


def prepare(
    *sources: str | Path,
    out: Path,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    given: Path | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Path:
    """Tokenise a corpus by name, or files and folders of text, into the dataset folder `out`; returns it.

    tokenizer: `char`, `byte`, `gpt2` or `bpe`, which is trained here to `vocab_size` ids (4,096 unless
    given). A single text is split by characters, its end going to validation, as nanoGPT does. From many
    documents every so-manieth whole one goes to validation, and each is followed by end-of-text where the
    tokenizer has it. `given` is a local copy of a corpus that would be downloaded. `note` receives lines
    about progress. Raises UserError.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}; it must lie between 0 and 1, for example 0.1")
    if (out / "dataset.json").exists() and not overwrite:
        raise UserError(f"{out} already holds a dataset; choose another --out, or --overwrite to make it anew")
    if len(sources) == 1 and str(sources[0]) in CORPORA:
        corpus = CORPORA[str(sources[0])]
        files = corpus.documents(out.parent / ".downloads" / "shakespeare", given)
        tokenizer, vocab_size = tokenizer or corpus.tokenizer, vocab_size or corpus.vocab_size
    else:
        if given is not None:
            raise UserError(f"--from goes with a corpus that is downloaded: {', '.join(CORPORA)}")
        files = [file for source in sources for file in _text_files(Path(source))]
    tokenizer = tokenizer or "gpt2"
    if tokenizer not in TOKENIZERS:
        raise UserError(f"no tokenizer {tokenizer!r}; choose from {', '.join(TOKENIZERS)}")

    documents = [_read(file) for file in files]
    train, val = _split(documents, val_fraction)
    encoder = _make_tokenizer(tokenizer, vocab_size or 4096, documents, train)
    if encoder.vocab_size > 1 << 16:
        raise UserError(f"a vocabulary of {encoder.vocab_size} ids does not fit uint16 tokens; use at most 65536")
    note(f"{len(files)} files, {sum(map(len, documents)):,} characters; {tokenizer}, {encoder.vocab_size} ids")

    with publish(out) as folder:
        folder.mkdir()
        end = [encoder.eot] if encoder.eot is not None and len(documents) > 1 else []
        counts = {}
        for split, texts in (("train", train), ("val", val)):
            with (folder / f"{split}.bin").open("wb") as file:
                counts[split] = sum(_write(file, encoder, text, end) for text in texts)
            note(f"{split}: {counts[split]:,} tokens")
        description = {
            "format": "gpt2 dataset 1",
            "source": " ".join(map(str, sources)),
            "documents": len(documents),
            "tokens": counts,
            "bytes": {
                split: sum(len(t.encode()) for t in texts) for split, texts in (("train", train), ("val", val))
            },
            "sha256": {split: sha256(folder / f"{split}.bin") for split in counts},
            "vocab_size": encoder.vocab_size,
            "tokenizer": encoder.to_json(),
        }
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return out


def _text_files(source: Path) -> list[Path]:
    """The file itself, or the text files of a folder by path."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"no corpus, file or folder {str(source)!r}; corpora by name: {', '.join(CORPORA)}")
    files = sorted(p for p in source.rglob("*") if p.suffix in TEXT_SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{source} holds no text files ({' '.join(sorted(TEXT_SUFFIXES))})")
    return files


def _read(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", newline="") as f:  # newline="": what is in the file, byte for byte
            return f.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text (byte {error.start}); convert it or leave it out") from None


def _split(documents: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Whole documents for validation where there are enough of them, else the end of the joined text."""
    if len(documents) * fraction >= 2:
        chosen = [int((i + 1) * fraction) > int(i * fraction) for i in range(len(documents))]
        train = [d for d, is_val in zip(documents, chosen, strict=True) if not is_val]
        return train, [d for d, is_val in zip(documents, chosen, strict=True) if is_val]
    text = "\n".join(documents)
    cut = int(len(text) * (1 - fraction))
    if not 0 < cut < len(text):
        raise UserError(f"the text has {len(text)} characters, too few to train and validate on; give more")
    return [text[:cut]], [text[cut:]]


def _make_tokenizer(kind: str, vocab_size: int, documents: Iterable[str], train: list[str]) -> Tokenizer:
    match kind:
        case "char":
            return CharTokenizer.train("".join(set().union(*map(set, documents))))
        case "byte":
            return ByteTokenizer()
        case "gpt2":
            return gpt2_tokenizer()
        case _:
            return train_bpe(train, vocab_size)


def _write(file: BinaryIO, tokenizer: Tokenizer, text: str, end: list[int]) -> int:
    """Append the tokens of one document; returns how many."""
    count = 0
    for chunk in _chunks(text):
        ids = np.array(tokenizer.encode(chunk), dtype="<u2")
        file.write(ids.tobytes())
        count += len(ids)
    file.write(np.array(end, dtype="<u2").tobytes())
    return count + len(end)


def _chunks(text: str) -> Iterator[str]:
    """Cut text where GPT-2's pre-split always cuts: between a printable character and the newline after it."""
    start = 0
    while start < len(text):
        end = start + CHUNK
        while end < len(text) and not (text[end] == "\n" and not text[end - 1].isspace()):
            end += 1
        yield text[start:end]
        start = end
