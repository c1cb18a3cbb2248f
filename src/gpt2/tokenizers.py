"""Tokenizers: characters, bytes, GPT-2's BPE, and a BPE trained on any text.

A tokenizer is stored with its dataset and its model as a JSON object, from which `from_json` restores it.
"""

import base64
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gpt2.errors import UserError
from gpt2.long_runs import encode_long_runs, has_long_run, trainable

if TYPE_CHECKING:
    import numpy as np

END_OF_TEXT = "<|endoftext|>"

# GPT-2's pre-split of text into words (openai/gpt-2, encoder.py), in the form tiktoken ships it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# A faster pattern with the same splits: the regex engine of tiktoken and rustbpe backtracks only for look-around, and
# all alternatives without it are in one group here. (The last alternative matches only a single whitespace character
# before a printable one.)
_FAST_GPT2_PATTERN = r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"""
TEXTS_AT_A_TIME = 64
"""Number of texts that training holds in memory, enough to occupy all cores."""
GPT2_VOCAB_FILES = {  # content: name of the file in tiktoken's cache
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}


class Tokenizer(Protocol):
    """Lists what every tokenizer has. Ids are 0 … vocab_size - 1."""

    @property
    def kind(self) -> str:
        """Return `char`, `byte`, `gpt2` or `bpe`."""
        ...

    @property
    def vocab_size(self) -> int:
        """Return the number of ids."""
        ...

    @property
    def eot(self) -> int | None:
        """Return the id of the end-of-text token, which separates documents; None where there is none."""
        ...

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Return the token ids of `text`.

        With `specials`, `<|endoftext|>` in the text becomes the token and not thirteen characters; so do the further
        special tokens of a BPE. Raises UserError for a character that a character tokenizer lacks.
        """
        ...

    def encode_array(self, text: str) -> "np.ndarray":
        """Return `encode(text)` as an array, uint32 (tokens,), which may be read-only. This needs less memory."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that the tokens stand for; a character may be split over several tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal tokenizer."""
        ...


def _valid_unicode(text: str) -> str:
    """Return the text as tiktoken reads it: surrogate pairs are joined, and a single half becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Decoding:
    """What all tokenizers do alike."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class CharTokenizer(_Decoding):
    """A character tokenizer has one id per character, sorted by code point, as in nanoGPT's shakespeare_char."""

    kind = "char"
    eot = None

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self._ids = {c: i for i, c in enumerate(characters)}

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        return cls("".join(sorted(set(text))))

    def encode(self, text: str, specials: bool = False) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def encode_array(self, text: str) -> "np.ndarray":
        import numpy as np

        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        if (unknown := ids == self.vocab_size).any():
            raise self._unknown(text[int(unknown.argmax())])
        return ids

    @functools.cached_property
    def _table(self) -> "np.ndarray":
        """Return the ids by code point, uint32; a code point without an id, such as the last, has `vocab_size`."""
        import numpy as np

        table = np.full(max(map(ord, self.characters), default=0) + 2, self.vocab_size, dtype=np.uint32)
        for c, i in self._ids.items():
            table[ord(c)] = i
        return table

    def _unknown(self, c: str) -> UserError:
        return UserError(
            f"the text has the character {c!r} (U+{ord(c):04X}), which is not among the "
            f"{self.vocab_size} characters of this tokenizer; remove it from the text"
        )

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return "".join(self.characters[i] for i in ids).encode()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer(_Decoding):
    """A byte tokenizer has the 256 bytes of UTF-8, and end-of-text as id 256."""

    kind = "byte"
    vocab_size = 257
    eot = 256

    def encode(self, text: str, specials: bool = False) -> list[int]:
        if not specials:
            return list(_valid_unicode(text).encode())
        first, *rest = _valid_unicode(text).split(END_OF_TEXT)
        ids = list(first.encode())
        for piece in rest:
            ids += [self.eot, *piece.encode()]
        return ids

    def encode_array(self, text: str) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(_valid_unicode(text).encode(), dtype=np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(END_OF_TEXT.encode() if i == self.eot else bytes([i]) for i in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


class BPETokenizer(_Decoding):
    """A BPE tokenizer does byte-level byte-pair encoding, by tiktoken.

    `tokens` are the bytes of each id in order, without end-of-text, whose id is `eot`; by default the last. The ids
    of `specials`, further special tokens, follow all of these. `kind` is `gpt2` for OpenAI's vocabulary and `bpe` for
    any other. Raises UserError for special tokens that could be confused with other tokens.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: str,
        kind: str = "bpe",
        eot: int | None = None,
        specials: Sequence[str] = (),
    ) -> None:
        import tiktoken

        if specials:
            check_specials(specials, tokens)
        self.kind = "bpe" if specials else kind  # a vocabulary with further ids is not OpenAI's
        self.pattern = pattern
        self.tokens = tokens
        self.specials = tuple(specials)
        self.eot = len(tokens) if eot is None else eot
        first = len(tokens) + 1
        self.vocab_size = first + len(specials)
        self.encoding = tiktoken.Encoding(
            self.kind,
            pat_str=_FAST_GPT2_PATTERN if pattern == GPT2_PATTERN else pattern,
            mergeable_ranks={token: i + (i >= self.eot) for i, token in enumerate(tokens)},
            special_tokens={END_OF_TEXT: self.eot} | {special: first + i for i, special in enumerate(specials)},
        )

    def encode(self, text: str, specials: bool = False) -> list[int]:
        if has_long_run(text):
            return encode_long_runs(self.encoding, _valid_unicode(text), specials, self.pattern == GPT2_PATTERN)
        return self.encoding.encode(text, allowed_special="all") if specials else self.encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> "np.ndarray":
        if has_long_run(text):
            import numpy as np

            return np.array(self.encode(text), dtype=np.uint32)
        return self.encoding.encode_to_numpy(_valid_unicode(text), disallowed_special=())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self.encoding.decode_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        tokens = " ".join(base64.b64encode(t).decode() for t in self.tokens)
        eot = {} if self.eot == len(self.tokens) else {"eot": self.eot}
        specials = {"specials": list(self.specials)} if self.specials else {}
        return {"kind": self.kind, "pattern": self.pattern, "tokens": tokens, **eot, **specials}


def check_specials(specials: Sequence[str], tokens: Iterable[bytes]) -> None:
    """Raise UserError for special tokens that could be confused with each other or with any other token."""
    for one, other in itertools.pairwise(sorted([END_OF_TEXT, *specials])):  # a prefix precedes its extension
        if not one:
            raise UserError("a special token is empty; give it a text, for example <|user|>")
        if one == other:
            raise UserError(
                f"the special token {one!r} is given twice (every BPE has {END_OF_TEXT}); omit one of them"
            )
        if other.startswith(one):  # programs differ in which of the two they find
            raise UserError(f"the special token {other!r} begins with another, {one!r}; change one of them")
    # Hugging Face's files and GGUF identify tokens by their printable text, llm.c's by bytes. Both must be unique.
    taken, byte_of = set(tokens), byte_of_character()
    for special in specials:
        if _valid_unicode(special) != special:
            raise UserError(f"the special token {special!r} is not valid text (half a surrogate pair); change it")
        printed = bytes(byte_of[c] for c in special) if byte_of.keys() >= set(special) else None
        if special.encode() in taken or printed in taken:
            raise UserError(f"the special token {special!r} is an ordinary token too; choose one such as <|user|>")


@functools.cache
def gpt2_tokenizer() -> BPETokenizer:
    """Return OpenAI's GPT-2 tokenizer of 50,257 tokens, from tiktoken's cache or its download.

    Raises UserError where it is not in the cache and cannot be downloaded.
    """
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken lets every kind of network failure through
        names = " and ".join(f"{content} as {name}" for content, name in GPT2_VOCAB_FILES.items())
        raise UserError(
            f"cannot download GPT-2's vocabulary ({type(error).__name__}); put OpenAI's {names} into a folder "
            "and set TIKTOKEN_CACHE_DIR to it"
        ) from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)]
    return BPETokenizer(tokens, encoding._pat_str, kind="gpt2")


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ()) -> BPETokenizer:
    """Learn a byte-pair vocabulary of `vocab_size` ids, including end-of-text and `specials`, from `texts`.

    The texts may be a stream, of which only some are held in memory. A text with too few pairs to merge results in
    fewer ids. Raises UserError for a size that cannot hold the 256 bytes and the special tokens, and for special
    tokens that could be confused with other tokens.
    """
    import rustbpe

    least = 257 + len(specials)
    if vocab_size < least:
        raise UserError(f"a BPE vocabulary of {vocab_size} is too small; it needs at least {least} ids")
    check_specials(specials, (bytes([b]) for b in range(256)))  # before the time that training takes
    size = vocab_size - 1 - len(specials)
    trainer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]  (compiled, without types)
    texts = itertools.chain.from_iterable(map(trainable, texts))
    trainer.train_from_iterator(texts, vocab_size=size, buffer_size=TEXTS_AT_A_TIME, pattern=_FAST_GPT2_PATTERN)
    tokens = [bytes(token) for token, _ in trainer.get_mergeable_ranks()]
    return BPETokenizer(tokens, GPT2_PATTERN, specials=specials)


def byte_of_character() -> dict[str, int]:
    """Return GPT-2's map of bytes to printable characters in reverse (openai/gpt-2, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def from_json(value: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that a `to_json` object describes. Raises UserError where it describes none."""
    try:
        match value["kind"]:
            case "char":
                return CharTokenizer(value["characters"])
            case "byte":
                return ByteTokenizer()
            case "gpt2" | "bpe" as kind:
                tokens = [base64.b64decode(t) for t in value["tokens"].split(" ")]
                if len(set(tokens)) < len(tokens) or not 0 <= value.get("eot", 0) <= len(tokens):
                    raise ValueError("not a vocabulary")
                specials = value.get("specials", [])
                if not isinstance(specials, list) or not all(isinstance(s, str) for s in specials):
                    raise ValueError("not special tokens")
                return BPETokenizer(tokens, value["pattern"], kind, value.get("eot"), specials)
    except (KeyError, TypeError, AttributeError, ValueError, UserError):
        pass
    raise UserError("the tokenizer description cannot be read; prepare the dataset again")
