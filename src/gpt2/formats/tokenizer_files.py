"""Tokenizers read from the files next to a model, or from a file or folder that a user names.

Hugging Face, llm.c, llama.cpp and nanoGPT all store a list of tokens; `from_tokens` recognises the tokenizer that has
them. The files are written by `tokenizer_writer`.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.errors import UserError, first_line
from gpt2.formats import pickles
from gpt2.formats.pickled_values import Refused
from gpt2.tokenizers import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    byte_of_character,
    from_json,
    gpt2_tokenizer,
)

FILES = ("dataset.json", "meta.pkl", "tokenizer.json", "vocab.json", "gpt2_tokenizer.bin")
"""Files of a folder that hold a tokenizer, in the order in which they are looked for."""
GPT2_SIZES = (50257, 50304)
"""Size of GPT-2's vocabulary, and that size rounded up to a multiple of 64 as nanoGPT and build-nanogpt train it."""
GPT2_SHA256 = "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13"
"""SHA-256 of llm.c's tokenizer file for GPT-2's vocabulary."""
MAX_BYTES = 1 << 27
"""Largest JSON file that is read, in bytes."""
MAX_DIGITS = 100
"""Largest number of digits of an integer in a JSON file."""
LLMC_MAGIC, LLMC_VERSION = 20240328, 2
BYTE_OF = byte_of_character()


def find_tokenizer(model: Path, vocab_size: int, dataset: object = None) -> Callable[[], Tokenizer | None]:
    """Return a function that looks for the tokenizer of a model file that has none inside.

    It looks next to the file for nanoGPT's meta.pkl, Hugging Face's files or llm.c's, and in the folder where nanoGPT
    keeps `dataset`. Otherwise a vocabulary of GPT-2's size means GPT-2's tokenizer.
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
        return gpt2_tokenizer() if vocab_size in GPT2_SIZES else None

    return find


def open_tokenizer(name: str) -> Tokenizer:
    """Open the tokenizer a user names: `gpt2`, `byte`, a file, or a folder of a dataset or a model.

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
    if found is None:
        raise UserError(
            f"no tokenizer in {name}; name gpt2, byte, a dataset's folder, or a dataset.json, meta.pkl, "
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
            values = read_json(path, MAX_BYTES)
            if path.name == "dataset.json":
                return from_json(values["tokenizer"])
            if path.name == "vocab.json":
                merges = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
                return _from_vocab_and_merges(values, [m for m in merges if m])
            return _from_tokenizer_json(values)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise UserError(
            f"{path} holds no tokenizer that can be read here ({first_line(error)}); name another with --tokenizer"
        ) from None
    return None


def read_json(path: Path, max_bytes: int) -> Any:
    """Return the content of a JSON file.

    Raises ValueError for a file of more than `max_bytes`, for one that is nested too deeply and for one that is not
    JSON, and OSError where it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    try:
        return json.loads(data.decode(), parse_int=_integer)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def from_tokens(
    tokens: Sequence[bytes], eot: int | None, pattern: str = GPT2_PATTERN, specials: Sequence[str] = ()
) -> Tokenizer | None:
    """Return the tokenizer with these tokens, followed by these special tokens; None where no kind fits.

    A byte-level BPE is recognised by having all 256 bytes, and its merges are taken to be in the order of its ids.
    Raises UserError for special tokens that could be confused with other tokens.
    """
    rest = [t for i, t in enumerate(tokens) if i != eot]
    if len(set(rest)) < len(rest) or (eot is not None and tokens[eot] != END_OF_TEXT.encode()):
        return None
    if eot == 256 and not specials and rest == [bytes([b]) for b in range(256)]:
        return ByteTokenizer()
    if eot is not None and {bytes([b]) for b in range(256)} <= set(rest):
        is_gpt2 = len(tokens) == 50257 and max(map(len, tokens)) < 256
        is_gpt2 = is_gpt2 and hashlib.sha256(llmc_bytes(tokens, eot)).hexdigest() == GPT2_SHA256
        kind = "gpt2" if is_gpt2 else "bpe"
        return BPETokenizer(rest, pattern, kind, None if eot == len(rest) else eot, specials)
    characters = [t.decode("utf-8", errors="ignore") for t in rest]
    if eot is None and not specials and all(len(c) == 1 for c in characters):
        return CharTokenizer("".join(characters))
    return None


def _from_tokenizer_json(values: dict[str, Any]) -> Tokenizer:
    """Read Hugging Face's `tokenizer.json`. Raises ValueError for a kind that this program does not have."""
    model, added_tokens = values["model"], values.get("added_tokens") or []
    added = {t["content"]: t["id"] for t in added_tokens}
    for token in added_tokens:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise ValueError(f"its special token {token['content']} depends on the text next to it")
    if values.get("normalizer"):
        raise ValueError("it changes the text before splitting it")
    if model["type"] == "WordLevel" and not added:
        vocab = {i: token for token, i in model["vocab"].items()}
        return _recognised(from_tokens([vocab[i].encode() for i in range(len(vocab))], None))
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} model")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _byte_level(model["vocab"], merges, _pattern(values["pre_tokenizer"]), added)


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    """Return the pattern by which a byte-level pre-tokenizer splits text."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2_PATTERN  # also without its regex, which matters only where there are merges
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    raise ValueError("it does not split text as GPT-2 does")


def _from_vocab_and_merges(vocab: dict[str, int], merges: list[str]) -> Tokenizer:
    """Read the older pair of files, `vocab.json` and the lines of `merges.txt`. Raises ValueError, KeyError."""
    return _byte_level(vocab, merges, GPT2_PATTERN, {END_OF_TEXT: vocab[END_OF_TEXT]})


def _byte_level(vocab: dict[str, int], merges: list[str], pattern: str, added: dict[str, int]) -> Tokenizer:
    """Return a byte-level BPE. Raises ValueError where its merges do not make its tokens in the order of the ids."""
    if END_OF_TEXT not in added:
        raise ValueError(f"its special tokens are {', '.join(sorted(added)) or 'none'}, without {END_OF_TEXT}")
    eot = added[END_OF_TEXT]
    specials = sorted(added.keys() - {END_OF_TEXT}, key=added.__getitem__)
    by_id = {i: token for token, i in vocab.items() if token not in added}
    for i, special in enumerate(specials, start=len(by_id) + 1):
        if added[special] != i:
            raise ValueError(f"its special token {special} has the id {added[special]}, not {i} after all others")
    tokens = [
        END_OF_TEXT.encode() if i == eot else bytes(BYTE_OF[c] for c in by_id[i]) for i in range(len(by_id) + 1)
    ]
    joined = [m.replace(" ", "") for m in merges]
    if joined != [by_id[i] for i in sorted(by_id) if len(by_id[i]) > 1]:
        raise ValueError("its merges are not in the order of its ids")
    try:
        return _recognised(from_tokens(tokens, eot, pattern, specials))
    except UserError as error:
        raise ValueError(str(error)) from None


def _recognised(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ValueError("its tokens are neither bytes, characters nor byte-pairs")
    return tokenizer


def llmc_bytes(tokens: Sequence[bytes], eot: int) -> bytes:
    """Return llm.c's tokenizer file: a header of 256 int32, then the length and the bytes of each token.

    Raises ValueError for a token of more than 255 bytes, which the format cannot hold.
    """
    header = np.zeros(256, dtype="<i4")
    header[:4] = LLMC_MAGIC, LLMC_VERSION, len(tokens), eot
    return header.tobytes() + b"".join(bytes([len(t)]) + t for t in tokens)


def _from_llmc(data: bytes) -> Tokenizer | None:
    """Read llm.c's tokenizer file, version 1 or 2. Raises ValueError, IndexError."""
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
    return from_tokens(tokens, eot if 0 <= eot < count and tokens[eot] == END_OF_TEXT.encode() else None)


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
