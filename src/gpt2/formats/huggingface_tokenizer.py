"""Hugging Face's tokenizer files, in both directions."""

import json
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.formats.vocabulary import BYTE_OF, from_tokens, merges, printable
from gpt2.tokenizers import END_OF_TEXT, GPT2_PATTERN, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


def from_tokenizer_json(values: dict[str, Any]) -> Tokenizer:
    """`tokenizer.json` of Hugging Face's tokenizers. Raises ValueError for one of another kind."""
    model, added_tokens = values["model"], values.get("added_tokens") or []
    added = {t["content"]: t["id"] for t in added_tokens}
    for token in added_tokens:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise ValueError(f"its special token {token['content']} depends on what stands beside it")
    if values.get("normalizer"):
        raise ValueError("it changes the text before splitting it")
    if model["type"] == "WordLevel" and not added:
        vocab = {i: token for token, i in model["vocab"].items()}
        return _known(from_tokens([vocab[i].encode() for i in range(len(vocab))], None))
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} model")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _byte_level(model["vocab"], merges, _pattern(values["pre_tokenizer"]), added)


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    """The pattern a byte-level pre-tokenizer splits by."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2_PATTERN  # without its regex too, where there is nothing to merge
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    raise ValueError("its text is not split as GPT-2's")


def from_vocab_and_merges(vocab: dict[str, int], merges: list[str]) -> Tokenizer:
    """The older pair of files, `vocab.json` and the lines of `merges.txt`. Raises ValueError, KeyError."""
    return _byte_level(vocab, merges, GPT2_PATTERN, {END_OF_TEXT: vocab[END_OF_TEXT]})


def _byte_level(vocab: dict[str, int], merges: list[str], pattern: str, added: dict[str, int]) -> Tokenizer:
    """A byte-level BPE whose merges make its tokens in the order of their ids. Raises ValueError for another."""
    if END_OF_TEXT not in added:
        raise ValueError(f"its special tokens are {', '.join(sorted(added)) or 'none'}, without {END_OF_TEXT}")
    eot = added[END_OF_TEXT]
    specials = sorted(added.keys() - {END_OF_TEXT}, key=added.__getitem__)
    by_id = {i: token for token, i in vocab.items() if token not in added}
    for i, special in enumerate(specials, start=len(by_id) + 1):
        if added[special] != i:
            raise ValueError(f"its special token {special} has the id {added[special]}, not {i} after all others")
    tokens = [END_OF_TEXT.encode() if i == eot else _bytes(by_id[i]) for i in range(len(by_id) + 1)]
    joined = [m.replace(" ", "") for m in merges]
    if joined != [by_id[i] for i in sorted(by_id) if len(by_id[i]) > 1]:
        raise ValueError("its merges are not in the order of its ids")
    try:
        return _known(from_tokens(tokens, eot, pattern, specials))
    except UserError as error:
        raise ValueError(str(error)) from None


def _bytes(token: str) -> bytes:
    return bytes(BYTE_OF[c] for c in token)


def _known(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ValueError("its tokens are neither bytes, characters nor byte-pairs")
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write what `AutoTokenizer.from_pretrained` needs to `folder`.

    A character model's tokenizer fails on characters it does not have, as ours does.
    """
    parts = write_json(tokenizer, folder / "tokenizer.json")
    config: dict[str, Any] = {
        "tokenizer_class": "GPT2Tokenizer" if tokenizer.kind == "gpt2" else "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.eot is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    if tokenizer.kind == "gpt2":  # as GPT-2 is published, for programs that know only these two
        config["add_prefix_space"] = False
        _dump(folder / "vocab.json", parts["model"]["vocab"])
        lines = "".join(f"{left} {right}\n" for left, right in parts["model"]["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
    _dump(folder / "tokenizer_config.json", config)


def write_json(tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Write `tokenizer.json`, which is the whole tokenizer, to `path`; returns what it says of the tokenizer."""
    parts = _parts(tokenizer)
    _dump(path, {"version": "1.0", "truncation": None, "padding": None, **parts})
    return parts


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """`tokenizer.json` but for its frame."""
    match tokenizer:
        case CharTokenizer():
            vocab = {c: i for i, c in enumerate(tokenizer.characters)}
            split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
            return {
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": split,
                "post_processor": None,
                "decoder": {"type": "Fuse"},
                "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
            }
        case ByteTokenizer():
            vocab, pairs, splitting = {printable(bytes([b])): b for b in range(256)}, [], {"use_regex": False}
        case BPETokenizer():
            ids = (i for i in range(len(tokenizer.tokens) + 1) if i != tokenizer.eot)
            vocab = {printable(t): i for t, i in zip(tokenizer.tokens, ids, strict=True)}
            pairs = [(printable(left), printable(right)) for left, right in merges(tokenizer)]
            splitting = {"use_regex": True}
        case _:
            raise AssertionError(f"a tokenizer of kind {tokenizer.kind}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre_tokenizer: dict[str, Any] = {**byte_level, **splitting}
    if isinstance(tokenizer, BPETokenizer) and tokenizer.pattern != GPT2_PATTERN:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    specials = tokenizer.specials if isinstance(tokenizer, BPETokenizer) else ()
    added = {END_OF_TEXT: tokenizer.eot} | dict(
        zip(specials, range(len(vocab) + 1, tokenizer.vocab_size), strict=True)
    )
    alone = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "added_tokens": [{"id": i, "content": special, **alone} for special, i in added.items()],
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
            "vocab": {**vocab, END_OF_TEXT: tokenizer.eot},
            "merges": pairs,
        },
    }
