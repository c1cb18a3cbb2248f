"""Hugging Face's files of a tokenizer, read: `tokenizer.json`, or the older `vocab.json` and `merges.txt`.

The files next to them say what the special tokens are for: `tokenizer_config.json`, `special_tokens_map.json`,
`added_tokens.json`, `chat_template.jinja`, and the model's `generation_config.json` or `config.json`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.errors import first_line
from gpt2.json_file import read_json
from gpt2.special_tokens import END_OF_TEXT, SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, byte_of_character

BYTE_OF = byte_of_character()
TokenList = tuple[list[bytes], SpecialTokens, str]
"""The ordinary tokens in the order of their ids, the special tokens, and the pattern that splits text into words."""
MAX_BYTES = 1 << 27
"""Size of a tokenizer's file, at most."""
ROLES = ("bos", "eos", "unk", "pad")
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
"""Values of `tokenizer_class` for which `<|endoftext|>` is bos, eos and unk unless the files say otherwise."""


@dataclass(frozen=True)
class _Folder:
    """Holds what the files next to a tokenizer's file say; each is empty where there is no such file."""

    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    special_tokens_map: dict[str, Any] = field(default_factory=dict)
    added_tokens: dict[str, int] = field(default_factory=dict)
    generation_config: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "_Folder":
        """Read the files of a folder. Raises ValueError for one that is damaged."""
        names = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")
        files = {name: _json_object(folder / f"{name}.json") for name in names}
        jinja = folder / "chat_template.jinja"
        template = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
        return cls(**files, chat_template=template or _default_template(files["tokenizer_config"]))

    def role(self, name: str) -> str | None:
        """Return the text of the token with a role, such as `eos`; None where the files name none."""
        for values in (self.tokenizer_config, self.special_tokens_map):
            if f"{name}_token" in values:
                return _text(values[f"{name}_token"])
        is_gpt2 = self.tokenizer_config.get("tokenizer_class") in GPT2_CLASSES
        return END_OF_TEXT if is_gpt2 and name != "pad" else None

    @property
    def ends(self) -> list[int]:
        """Return the ids at which the model's generated texts end; transformers asks the same files for them."""
        values = self.generation_config or self.config
        found = values.get("eos_token_id")
        return [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]

    @property
    def markers(self) -> set[str]:
        """Return the texts of the special tokens that are no words, as far as these files name them."""
        lists = ("additional_special_tokens", "extra_special_tokens")
        named = [values.get(key) for values in (self.tokenizer_config, self.special_tokens_map) for key in lists]
        further = [_text(token) for tokens in named if isinstance(tokens, list) for token in tokens]
        return {text for text in (*map(self.role, ROLES), *further) if text is not None}


def read(path: Path) -> TokenList:
    """Return the tokens of a `tokenizer.json` of any name, or of a `vocab.json` with its `merges.txt`.

    Raises OSError, and ValueError, KeyError, TypeError or AttributeError for a tokenizer that this program does not
    have or a damaged file.
    """
    values = read_json(path, MAX_BYTES)
    if path.name == "vocab.json":
        merges = (path.parent / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        folder = _Folder.read(path.parent)
        return _byte_level(values, [m for m in merges if m], GPT2_PATTERN, _older_added(values, folder), folder)
    return _from_tokenizer_json(values, _Folder.read(path.parent) if path.name == "tokenizer.json" else _Folder())


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = read_json(path, MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"{path.name}: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return values


def _default_template(values: dict[str, Any]) -> str | None:
    """Return the chat template in `tokenizer_config.json`, where several are named the default one."""
    found = values.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(token: Any) -> str | None:
    """Return the text of a token, which the files give as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _older_added(vocab: dict[str, int], folder: _Folder) -> list[dict[str, Any]]:
    """Return the added tokens of a folder with `vocab.json`, in the form of `tokenizer.json`."""
    decoder = folder.tokenizer_config.get("added_tokens_decoder", {})
    added = {token["content"]: {**token, "id": int(i)} for i, token in decoder.items()}
    markers = folder.markers
    ids = {text: vocab[text] for text in sorted(markers | {END_OF_TEXT}) if text in vocab} | folder.added_tokens
    for text, i in ids.items():
        added.setdefault(text, {"id": i, "content": text, "special": text in markers})
    return list(added.values())


def _from_tokenizer_json(values: dict[str, Any], folder: _Folder) -> TokenList:
    """Return the tokens of `tokenizer.json`. Raises ValueError for a kind that this program lacks."""
    model, added = values["model"], values.get("added_tokens") or []
    for token in added:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise ValueError(f"its special token {token['content']} depends on the text next to it")
    if values.get("normalizer"):
        raise ValueError("it changes the text before splitting it")
    if model["type"] == "WordLevel" and not added:
        vocab = {i: token for token, i in model["vocab"].items()}
        return [vocab[i].encode() for i in range(len(vocab))], SpecialTokens(), GPT2_PATTERN
    if model["type"] != "BPE":
        raise ValueError(f"a {model['type']} model")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _byte_level(model["vocab"], merges, _pattern(values["pre_tokenizer"]), added, folder)


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


def _byte_level(
    vocab: dict[str, int], merges: list[str], pattern: str, added: list[dict[str, Any]], folder: _Folder
) -> TokenList:
    """Return the tokens of a byte-level BPE.

    Raises ValueError where its ids have gaps, or its merges do not make its tokens in the order of the ids.
    """
    merged = [m.replace(" ", "") for m in merges]
    ordinary_texts = {*merged, *BYTE_OF}
    named = folder.markers - ordinary_texts  # transformers adds them to the special tokens
    listed = {token["content"] for token in added}
    added = added + [{"id": vocab[text], "content": text} for text in sorted(named - listed) if text in vocab]
    if both := ordinary_texts & {token["content"] for token in added}:
        raise ValueError(f"its special token {min(both)!r} is an ordinary token too")
    special = _special_tokens(vocab, added, folder)
    by_id = {i: text for text, i in vocab.items() if text not in special.ids}
    taken = by_id | {i: text for text, i in special.ids.items()}
    if gap := set(range(max(taken, default=-1) + 1)) - taken.keys():
        after = min(i for i in taken if i > min(gap))
        raise ValueError(f"its token {taken[after]} has the id {after}, and no token has {after - 1}")
    ordinary = [by_id[i] for i in sorted(by_id)]
    if merged != [text for text in ordinary if len(text) > 1]:
        raise ValueError("its merges are not in the order of its ids")
    return [bytes(BYTE_OF[c] for c in text) for text in ordinary], special, pattern


def _special_tokens(vocab: dict[str, int], added: Iterable[dict[str, Any]], folder: _Folder) -> SpecialTokens:
    """Return the special tokens among the added ones, and what the files say that they are for. Raises ValueError."""
    listed = sorted(added, key=lambda token: token["id"])
    ids: dict[str, int] = {token["content"]: token["id"] for token in listed}
    all_ids = vocab | ids
    roles = {name: all_ids.get(text) if (text := folder.role(name)) else None for name in ROLES}
    known = set(all_ids.values())
    ends = [i for i in folder.ends if i in known]
    eos = roles["eos"]
    if eos is None:
        eos = roles["eos"] = ends[0] if ends else ids.get(END_OF_TEXT)
    words = {token["content"] for token in listed if not token.get("special", True)} - folder.markers
    return SpecialTokens(
        ids,
        **roles,
        further_ends=tuple(dict.fromkeys(i for i in ends if i != eos)),
        words=frozenset(words),
        chat_template=folder.chat_template,
    )
