"""Tokenizers from the files that lie beside a model, or that a user names."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt2.data.nanogpt_meta import read_meta
from gpt2.errors import UserError, first_line
from gpt2.formats import huggingface_tokenizer
from gpt2.formats.vocabulary import LLMC_MAGIC, from_tokens
from gpt2.tokenizers import END_OF_TEXT, ByteTokenizer, Tokenizer, from_json, gpt2_tokenizer

GPT2_SIZES = (50257, 50304)
"""GPT-2's vocabulary, and rounded up to a multiple of 64 as nanoGPT and build-nanogpt train it."""


def find_tokenizer(model: Path, vocab_size: int, dataset: object = None) -> Callable[[], Tokenizer | None]:
    """Looks, when asked, for the tokenizer of a model file that has none inside.

    Beside it lies nanoGPT's meta.pkl, Hugging Face's files or llm.c's; or it is where nanoGPT keeps `dataset`;
    or it is GPT-2's, by the size of the vocabulary.
    """

    @functools.cache
    def find() -> Tokenizer | None:
        folder = model.absolute().parent  # not resolved: in the hub's cache the files are links to elsewhere
        if isinstance(dataset, str) and re.fullmatch(r"[\w.-]{1,100}", dataset):
            meta = folder.parent / "data" / dataset / "meta.pkl"
            if meta.is_file():
                return read_meta(meta)
        found = _in_folder(folder)
        # nanoGPT gives its models as many rows as there are characters; other tokenizers' rows may be rounded up
        if found and (found.vocab_size == vocab_size or (found.kind != "char" and found.vocab_size < vocab_size)):
            return found
        return gpt2_tokenizer() if vocab_size in GPT2_SIZES else None

    return find


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer a user names: `gpt2`, `byte`, a file, or a folder of a dataset or a model. Raises UserError."""
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "byte":
        return ByteTokenizer()
    path = Path(name)
    found = _in_folder(path) if path.is_dir() else _from_file(path) if path.is_file() else None
    if found is None and (path / "train.bin").is_file():
        return gpt2_tokenizer()  # a dataset of nanoGPT's without meta.pkl
    if found is None:
        raise UserError(
            f"no tokenizer in {name}; name gpt2, byte, a dataset's folder, or a dataset.json, meta.pkl, "
            "tokenizer.json or gpt2_tokenizer.bin"
        )
    return found


FILES = ("dataset.json", "meta.pkl", "tokenizer.json", "vocab.json", "gpt2_tokenizer.bin")


def _in_folder(folder: Path) -> Tokenizer | None:
    for name in FILES:
        if (folder / name).is_file():
            return _from_file(folder / name)
    return None


def _from_file(path: Path) -> Tokenizer | None:
    """The tokenizer in a file of any of these kinds; None for another file. Raises UserError for a damaged one."""
    try:
        if path.suffix == ".pkl":
            return read_meta(path)
        if path.suffix == ".bin":
            return _from_llmc(path.read_bytes())
        if path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
            if path.name == "dataset.json":
                return from_json(values["tokenizer"])
            if path.name == "vocab.json":
                merges = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
                return huggingface_tokenizer.from_vocab_and_merges(values, [m for m in merges if m])
            return huggingface_tokenizer.from_tokenizer_json(values)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} holds no tokenizer that can be read here ({first_line(error)}); name another with --tokenizer"
        ) from None
    return None


def _from_llmc(data: bytes) -> Tokenizer | None:
    """llm.c's tokenizer file, version 1 or 2. Raises ValueError, IndexError."""
    header = np.frombuffer(data[:1024], dtype="<i4")
    if header[0] != LLMC_MAGIC or header[1] not in (1, 2):
        return None
    count, eot = int(header[2]), int(header[3]) if header[1] == 2 else 50256
    tokens, at = [], 1024
    for _ in range(count):
        tokens.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where its tokens end at {at}")
    # A character model has no end-of-text; the file then names the token its samples start from.
    return from_tokens(tokens, eot if 0 <= eot < count and tokens[eot] == END_OF_TEXT.encode() else None)
