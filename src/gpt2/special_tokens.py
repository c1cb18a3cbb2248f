"""Special tokens: ids that stand for a marker in the text, such as the end of a document or a speaker's turn."""

import functools
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.errors import UserError

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class SpecialTokens:
    """Lists the special tokens of a vocabulary, and what some of them are for. Raises ValueError for impossible ones.

    The fields mirror what Hugging Face's and llama.cpp's files record.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    """The text of each special token and its id, including end-of-text, in the order of the ids."""
    eos: int | None = None
    """Id of end-of-text, which separates documents and ends a generated text. None where there is none."""
    bos: int | None = None
    """Id that other programs put at the beginning of a text, if they put any there."""
    unk: int | None = None
    """Id that other programs use for unknown text."""
    pad: int | None = None
    """Id that other programs use to fill up a batch."""
    further_ends: tuple[int, ...] = ()
    """Further ids at which a generated text ends, such as the end of a speaker's turn."""
    words: frozenset[str] = frozenset()
    """Those of `ids` that are words added to the vocabulary. They are found in any text, unlike markers."""
    chat_template: str | None = None
    """Jinja template by which programs write a conversation as one text."""

    def __post_init__(self) -> None:
        numbers = [*self.ids.values(), *self.further_ends, *self.roles.values()]
        if not all(type(i) is int and i >= 0 for i in numbers) or len(set(self.ids.values())) < len(self.ids):
            raise ValueError("the ids of special tokens must be different integers that are not negative")
        if not all(isinstance(text, str) and text for text in self.ids) or not self.words <= self.ids.keys():
            raise ValueError("a special token must be a text")

    @property
    def roles(self) -> dict[str, int]:
        """Return the ids of `bos`, `eos`, `unk` and `pad`, as far as there are any."""
        ids = {"bos": self.bos, "eos": self.eos, "unk": self.unk, "pad": self.pad}
        return {role: i for role, i in ids.items() if i is not None}

    @property
    def ends(self) -> tuple[int, ...]:
        """Return all ids at which a generated text ends; end-of-text is the first."""
        return (() if self.eos is None else (self.eos,)) + self.further_ends

    @property
    def markers(self) -> list[str]:
        """Return the texts of the special tokens that are no words, in the order of their ids."""
        return [text for text in self.ids if text not in self.words]

    def named(self, i: int | None) -> str | None:
        """Return the text of a special token; None where the id is no special token's."""
        return next((text for text, other in self.ids.items() if other == i), None)

    def pieces(self, text: str, markers: bool) -> list[str | int]:
        """Return a text in pieces: ordinary text as a string, and each special token in it as its id.

        Words are always found, and markers only if `markers`. Where several special tokens begin at the same
        character, the longest is found, as Hugging Face's tokenizers do.
        """
        pattern = self._any_pattern if markers else self._word_pattern
        if pattern is None:
            return [text]
        split = pattern.split(text)  # every second piece is a special token
        return [self.ids[piece] if number % 2 else piece for number, piece in enumerate(split) if piece]

    @functools.cached_property
    def _any_pattern(self) -> re.Pattern[str] | None:
        return _pattern_of(self.ids)

    @functools.cached_property
    def _word_pattern(self) -> re.Pattern[str] | None:
        return _pattern_of(self.words)

    @classmethod
    def after(cls, tokens: int, markers: Sequence[str] = (), eot: int | None = None) -> "SpecialTokens":
        """Return the special tokens that follow `tokens` ordinary ids: end-of-text, and `markers` after all others.

        The id of end-of-text can also be another one, `eot`. As in GPT-2, it is `bos` and `unk` too.
        """
        eot = tokens if eot is None else eot
        ids = {END_OF_TEXT: eot} | {marker: tokens + 1 + number for number, marker in enumerate(markers)}
        return cls(ids, eos=eot, bos=eot, unk=eot)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes equal special tokens; it omits what is empty."""
        values = {
            "ids": dict(self.ids),
            **self.roles,
            "further_ends": list(self.further_ends),
            "words": [text for text in self.ids if text in self.words],
            "chat_template": self.chat_template,
        }
        return {name: value for name, value in values.items() if value not in (None, [])}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "SpecialTokens":
        """Return the special tokens that a `to_json` object describes. Raises ValueError, TypeError, KeyError."""
        if not isinstance(values.get("chat_template", ""), str):
            raise ValueError("a chat template must be a text")
        ids = dict(sorted(values["ids"].items(), key=lambda entry: entry[1]))
        further, words = tuple(values.get("further_ends", ())), frozenset(values.get("words", ()))
        rest = {name: values.get(name) for name in ("eos", "bos", "unk", "pad", "chat_template")}
        return cls(ids, further_ends=further, words=words, **rest)


def require_distinct(markers: Sequence[str]) -> None:
    """Raise UserError for new special tokens that could be confused with each other or with end-of-text."""
    for one, other in itertools.pairwise(sorted([END_OF_TEXT, *markers])):  # a prefix precedes its extension
        if not one:
            raise UserError("a special token is empty; give it a text, for example <|user|>")
        if one == other:
            raise UserError(
                f"the special token {one!r} is given twice (every BPE has {END_OF_TEXT}); omit one of them"
            )
        if other.startswith(one):  # programs differ in which of the two they find
            raise UserError(f"the special token {other!r} begins with another, {one!r}; change one of them")


def require_no_ordinary(texts: Iterable[str], tokens: Iterable[bytes], byte_of: Mapping[str, int]) -> None:
    """Raise UserError for special tokens that could be confused with an ordinary token.

    Hugging Face's files and GGUF identify tokens by their printable text, which `byte_of` maps to bytes, and llm.c's
    by bytes. Both must be unique.
    """
    taken = set(tokens)
    for text in texts:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the special token {text!r} is not valid text (half a surrogate pair); change it"
            ) from None
        printed = bytes(byte_of[c] for c in text) if byte_of.keys() >= set(text) else None
        if data in taken or printed in taken:
            raise UserError(f"the special token {text!r} is an ordinary token too; choose another text for it")


def _pattern_of(texts: Collection[str]) -> re.Pattern[str] | None:
    """Return a pattern with one group that matches any of the texts, the longest first; None where there are none."""
    ordered = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None
