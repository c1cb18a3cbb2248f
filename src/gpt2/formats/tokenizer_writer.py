"""Tokenizers written as the files of Hugging Face, nanoGPT and llm.c; `tokenizer_files` reads them."""

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.formats.tokenizer_files import BYTE_OF, llmc_bytes
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

CHARACTER_OF = {b: c for c, b in BYTE_OF.items()}


def printable(token: bytes) -> str:
    """Return a token as GPT-2's files write it: one printable character for every byte."""
    return "".join(CHARACTER_OF[b] for b in token)


def all_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of every id; for special tokens, the bytes of their text."""
    return [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]


def merges(tokenizer: BPETokenizer) -> list[tuple[bytes, bytes]]:
    """Return the pairs that byte-pair encoding merges, in order: each token is the last merge of those before it.

    Raises UserError for a vocabulary that did not come from merges.
    """
    rank = {token: i for i, token in enumerate(tokenizer.tokens)}
    pairs = []
    for limit, token in enumerate(tokenizer.tokens):
        if len(token) > 1:
            left, right = _split(token, rank, limit)
            pairs.append((left, right))
    return pairs


def _split(token: bytes, rank: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """Return the two pieces that remain when a token is encoded with the tokens below `limit`."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    while len(pieces) > 2:
        candidates = [rank.get(a + b, limit) for a, b in itertools.pairwise(pieces)]
        best = min(range(len(candidates)), key=candidates.__getitem__)
        if candidates[best] == limit:
            raise UserError(
                f"the tokenizer's token {token!r} is not a merge of two others, so its merges cannot be written; if "
                "it is a special token, which llm.c's files do not record, name the tokenizer that the model was "
                "trained with by --tokenizer"
            )
        pieces[best : best + 2] = [pieces[best] + pieces[best + 1]]
    return pieces[0], pieces[1]


def meta_bytes(tokenizer: CharTokenizer) -> bytes:
    """Return the content of nanoGPT's `meta.pkl` for a character tokenizer."""
    itos = dict(enumerate(tokenizer.characters))
    return pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}})


def write_llmc(tokenizer: Tokenizer, path: Path) -> None:
    """Write the vocabulary with which llm.c decodes. Raises UserError for a token that the format cannot hold.

    Without an end-of-text token, llm.c's samples start from a newline, or from id 0.
    """
    tokens = all_tokens(tokenizer)
    if any(len(t) > 255 for t in tokens):
        raise UserError(f"a token of {max(map(len, tokens))} bytes does not fit llm.c's tokenizer file (255 at most)")
    start = tokens.index(b"\n") if b"\n" in tokens else 0
    path.write_bytes(llmc_bytes(tokens, start if tokenizer.eot is None else tokenizer.eot))


def write_huggingface(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write to `folder` what `AutoTokenizer.from_pretrained` needs.

    The tokenizer of a character model fails there on unknown characters, as it does in this program.
    """
    content = write_tokenizer_json(tokenizer, folder / "tokenizer.json")
    config: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer" if tokenizer.kind == "gpt2" else "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    special = tokenizer.special
    roles = {role: special.named(i) or printable(tokenizer.decode_bytes([i])) for role, i in special.roles.items()}
    config |= {f"{role}_token": text for role, text in roles.items()}
    if further := [text for text in special.markers if text not in roles.values()]:
        config["additional_special_tokens"] = further
    if special.chat_template is not None:
        config["chat_template"] = special.chat_template
    if tokenizer.kind == "gpt2":  # as GPT-2 is published, for programs that know only these two files
        config["add_prefix_space"] = False
        _dump(folder / "vocab.json", content["model"]["vocab"])
        lines = "".join(f"{left} {right}\n" for left, right in content["model"]["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8", newline="\n")
    _dump(folder / "tokenizer_config.json", config)


def write_tokenizer_json(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Write `tokenizer.json`, which describes the tokenizer completely, to `path`; return its content."""
    content = {"version": "1.0", "truncation": None, "padding": None, **_tokenizer_json(tokenizer)}
    _dump(path, content)
    return content


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the entries of `tokenizer.json` that depend on the tokenizer."""
    match tokenizer:
        case CharTokenizer():
            return _character_json(tokenizer)
        case ByteTokenizer():
            vocab, pairs, use_regex = {printable(bytes([b])): b for b in range(256)}, [], False
        case BPETokenizer():
            vocab = {printable(t): i for t, i in zip(tokenizer.tokens, tokenizer.ordinary_ids, strict=True)}
            pairs = [(printable(left), printable(right)) for left, right in merges(tokenizer)]
            use_regex = True
        case _:
            raise AssertionError(f"a tokenizer of kind {tokenizer.kind}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre_tokenizer: dict[str, Any] = {**byte_level, "use_regex": use_regex}
    if isinstance(tokenizer, BPETokenizer) and tokenizer.pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    special = tokenizer.special
    flags = {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": i, "content": text, "special": text not in special.words, **flags} for text, i in special.ids.items()
    ]
    # Only ids after all others can come from the list of added tokens. GPT-2's end-of-text is in both lists.
    last = max([*vocab.values(), special.eos or 0])
    vocab |= {text: i for text, i in special.ids.items() if i <= last}
    return {
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _character_json(tokenizer: CharTokenizer) -> dict[str, Any]:
    return {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\s\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {c: i for i, c in enumerate(tokenizer.characters)},
            "unk_token": "<unk>",
        },
    }
