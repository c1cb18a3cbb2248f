"""Tokenizers read from the files next to a model, or from a file or folder that a user names.

Other programs store lists of tokens; `from_tokens` recognises the tokenizer that has them. `huggingface_tokenizer`
reads Hugging Face's files, and `tokenizer_writer` writes those of all programs.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.errors import UserError, first_line
from gpt2.formats import huggingface_tokenizer, pickles
from gpt2.formats.pickled_values import Refused
from gpt2.json_file import read_json
from gpt2.special_tokens import END_OF_TEXT, SpecialTokens
from gpt2.spelling import did_you_mean
from gpt2.tokenizers import (
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    byte_of_character,
    from_json,
    gpt2_tokenizer,
)

DESCRIPTION = "dataset.json"
"""Name of the file that describes a dataset, and holds its tokenizer."""
FILES = (DESCRIPTION, "meta.pkl", "tokenizer.json", "vocab.json", "gpt2_tokenizer.bin")
"""Files of a folder that hold a tokenizer, in the order in which they are looked for."""
GPT2_SIZES = (50257, 50304)
"""Size of GPT-2's vocabulary, and that size rounded up to a multiple of 64 as nanoGPT and build-nanogpt train it."""
GPT2_SHA256 = "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13"
"""SHA-256 of llm.c's tokenizer file for GPT-2's vocabulary."""
MAX_BYTES = 1 << 27
"""Size of a dataset.json that holds a tokenizer, at most."""
LLMC_MAGIC, LLMC_VERSION = 20240328, 2
BYTE_OF = byte_of_character()
BYTES = [bytes([b]) for b in range(256)]


def find_tokenizer(model: Path, vocab_size: int, dataset: object = None) -> Callable[[], Tokenizer | None]:
    """Return a function that looks for the tokenizer of a model file that has none inside.

    It looks next to the file for nanoGPT's meta.pkl, Hugging Face's files or llm.c's, and in the folder where nanoGPT
    keeps `dataset`. Otherwise a vocabulary of GPT-2's size means GPT-2's tokenizer. The function raises UserError for
    a tokenizer that cannot be read, or that has another number of ids than the model.
    """

    @functools.cache
    def find() -> Tokenizer | None:
        folder = model.absolute().parent  # not resolved: in the hub's cache the files are links to another folder
        if isinstance(dataset, str) and re.fullmatch(r"[\w.-]{1,100}", dataset):
            meta = folder.parent / "data" / dataset / "meta.pkl"
            if meta.is_file():
                return read_meta(meta)
        found = _in_folder(folder)
        # nanoGPT's models have one embedding row per character; for other tokenizers the number may be rounded up
        if found and (found.vocab_size == vocab_size or (found.kind != "char" and found.vocab_size < vocab_size)):
            return found
        if vocab_size in GPT2_SIZES:
            return gpt2_tokenizer()
        if found:
            raise UserError(
                f"the {found.kind} tokenizer in {model.parent} has {found.vocab_size} ids, but {model.name} has "
                f"rows for {vocab_size}; name the model's own with --tokenizer"
            )
        return None

    return find


def open_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer a user names: `gpt2`, `byte`, a tokenizer's file, or a folder with one.

    Raises UserError where the name is none of these.
    """
    if name == "gpt2":
        return gpt2_tokenizer()
    if name == "byte":
        return ByteTokenizer()
    path = Path(name)
    found = _in_folder(path) if path.is_dir() else _from_file(path) if path.is_file() else None
    if found is None and (path / "train.bin").is_file():
        return gpt2_tokenizer()  # a dataset of nanoGPT's without meta.pkl
    if found is None and not path.exists():
        names = "name gpt2, byte, or the file or folder of a tokenizer, a dataset or a model"
        raise UserError(f"no file or folder {name!r} of a tokenizer; {did_you_mean(name, ('gpt2', 'byte'), names)}")
    if found is None:
        raise UserError(
            f"no tokenizer in {name}; name gpt2, byte, a model, a dataset's folder, or a dataset.json, meta.pkl, "
            "tokenizer.json or gpt2_tokenizer.bin"
        )
    return found


def _in_folder(folder: Path) -> Tokenizer | None:
    for name in FILES:
        if (folder / name).is_file():
            return _from_file(folder / name)
    return None


def _from_file(path: Path) -> Tokenizer | None:
    """Read the tokenizer in a file of these kinds; None for another file. Raises UserError for a damaged one."""
    try:
        if path.suffix == ".pkl":
            return read_meta(path)
        if path.suffix == ".bin":
            return _from_llmc(path.read_bytes())
        if path.suffix == ".json":
            if path.name != DESCRIPTION:
                return _recognised(*huggingface_tokenizer.read(path))
            return from_json(read_json(path, MAX_BYTES)["tokenizer"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} holds no tokenizer that can be read here ({first_line(error)}); name another with --tokenizer"
        ) from None
    return None


def from_tokens(tokens: Sequence[bytes], special: SpecialTokens, pattern: str = GPT2_PATTERN) -> Tokenizer | None:
    """Return the tokenizer with these ordinary tokens and special tokens; None where no kind fits.

    `tokens` are in the order of their ids, without the special tokens. A byte-level BPE is recognised by having all
    256 bytes, and its merges are taken to be in the order of its ids. Raises UserError for special tokens that could
    be confused with ordinary ones, and ValueError where the ids have gaps.
    """
    if len(set(tokens)) < len(tokens):
        return None
    if list(tokens) == BYTES and special.ids == {END_OF_TEXT: 256} and _is_usual(special):
        return ByteTokenizer()
    if set(BYTES) <= set(tokens):
        kind = "gpt2" if _is_gpt2(tokens, special) else "bpe"
        return BPETokenizer(list(tokens), pattern, kind, special)
    characters = [t.decode("utf-8", errors="ignore") for t in tokens]
    if not special.ids and all(len(c) == 1 for c in characters):
        return CharTokenizer("".join(characters))
    return None


def _is_usual(special: SpecialTokens) -> bool:
    """Return whether end-of-text is the only special token, and has no other use than in this program."""
    return special.ends == (special.ids[END_OF_TEXT],) and special.pad is None and special.chat_template is None


def _is_gpt2(tokens: Sequence[bytes], special: SpecialTokens) -> bool:
    """Return whether the ids are those of OpenAI's GPT-2."""
    if special.ids != {END_OF_TEXT: 50256} or len(tokens) != 50256 or max(map(len, tokens)) > 255:
        return False
    return hashlib.sha256(llmc_bytes([*tokens, END_OF_TEXT.encode()], 50256)).hexdigest() == GPT2_SHA256


def llmc_bytes(tokens: Sequence[bytes], eot: int) -> bytes:
    """Return llm.c's tokenizer file: a header of 256 int32, then the length and the bytes of each token.

    Raises ValueError for a token of more than 255 bytes, which the format cannot hold.
    """
    header = np.zeros(256, dtype="<i4")
    header[:4] = LLMC_MAGIC, LLMC_VERSION, len(tokens), eot
    return header.tobytes() + b"".join(bytes([len(t)]) + t for t in tokens)


def _from_llmc(data: bytes) -> Tokenizer | None:
    """Read llm.c's tokenizer file, version 1 or 2; None for another file. Raises ValueError, IndexError.

    The file does not record which tokens are special, so that only `<|endoftext|>` is.
    """
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
    # A character model has no end-of-text; the file then names the token from which llm.c starts its samples.
    if not 0 <= eot < count or tokens[eot] != END_OF_TEXT.encode():
        return from_tokens(tokens, SpecialTokens())
    return from_tokens(tokens[:eot] + tokens[eot + 1 :], SpecialTokens.after(count - 1, eot=eot))


def _recognised(tokens: list[bytes], special: SpecialTokens, pattern: str) -> Tokenizer:
    """Return the tokenizer with these tokens. Raises ValueError where there is none."""
    try:
        tokenizer = from_tokens(tokens, special, pattern)
    except UserError as error:
        raise ValueError(str(error)) from None
    if tokenizer is None:
        raise ValueError("its tokens are neither bytes, characters nor byte-pairs")
    return tokenizer


def read_meta(path: Path) -> CharTokenizer:
    """Read the tokenizer in nanoGPT's `meta.pkl`. Raises UserError for any other pickle, and executes none of it."""
    try:
        meta = _plain(path.read_bytes())
        count, itos = meta["vocab_size"], meta["itos"]
        if not isinstance(count, int) or count != len(itos):
            raise ValueError("its vocab_size is not the number of its characters")
        characters = "".join(itos[i] for i in range(count))
        if not len(set(characters)) == len(characters) == count:
            raise ValueError("its entries are not one character each")
        return CharTokenizer(characters)
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} is not the meta.pkl of a nanoGPT character dataset ({first_line(error)})") from None


def _plain(data: bytes) -> Any:
    """Return what a pickle of plain values holds. Raises ValueError for one that names a class or function."""
    reader = pickles.Reader(data)
    try:
        value, named = reader.load(), next(iter(reader.foreign), None)
    except Refused as error:
        value, named = None, str(error)
    if named:
        raise ValueError(f"it names {named[:80]}, and only plain values are admitted")
    return value
