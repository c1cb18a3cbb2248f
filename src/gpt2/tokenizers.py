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
from gpt2.special_tokens import END_OF_TEXT, SpecialTokens, require_distinct, require_no_ordinary
from gpt2.spelling import counted

if TYPE_CHECKING:
    import numpy as np

# GPT-2's pre-split of text into words (openai/gpt-2, encoder.py), in the form tiktoken ships it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# A faster pattern with the same splits: the regex engine of tiktoken and rustbpe backtracks only for look-around, and
# all alternatives without it are in one group here. (The last alternative matches only a single whitespace character
# before a printable one.)
_FAST_GPT2_PATTERN = r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"""
TEXTS_AT_A_TIME = 64
"""Number of texts that training holds in memory, enough to occupy all cores."""
LEAST_BPE = 257
"""Least number of ids of a byte-level BPE: the 256 bytes and end-of-text."""
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
    def special(self) -> SpecialTokens:
        """Return the special tokens and what they are for."""
        ...

    @property
    def eot(self) -> int | None:
        """Return the id of the end-of-text token, which separates documents; None where there is none."""
        ...

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Return the token ids of `text`.

        With `specials`, a marker such as `<|endoftext|>` in the text becomes the special token and not thirteen
        characters. Raises UserError for a character that a character tokenizer lacks.
        """
        ...

    def encode_array(self, text: str, specials: bool = False) -> "np.ndarray":
        """Return `encode(text, specials)` as an array, uint32 (tokens,), which may be read-only.

        This needs less memory than a list.
        """
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


class _Shared:
    """What all tokenizers do alike."""

    special = SpecialTokens()

    @property
    def eot(self) -> int | None:
        """Return the id of the end-of-text token, which separates documents; None where there is none."""
        return self.special.eos

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


class CharTokenizer(_Shared):
    """A character tokenizer has one id per character, sorted by code point, as in nanoGPT's shakespeare_char."""

    kind = "char"

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

    def encode_array(self, text: str, specials: bool = False) -> "np.ndarray":
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
            f"{counted(self.vocab_size, 'character')} of this tokenizer; remove it from the text"
        )

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return "".join(self.characters[i] for i in ids).encode()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer(_Shared):
    """A byte tokenizer has the 256 bytes of UTF-8, and end-of-text as id 256."""

    kind = "byte"
    vocab_size = 257
    special = SpecialTokens.after(256)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        ids: list[int] = []
        for piece in self.special.pieces(_valid_unicode(text), specials):
            ids += [piece] if isinstance(piece, int) else piece.encode()
        return ids

    def encode_array(self, text: str, specials: bool = False) -> "np.ndarray":
        import numpy as np

        if specials:
            return np.array(self.encode(text, specials), dtype=np.uint32)
        return np.frombuffer(_valid_unicode(text).encode(), dtype=np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        end = END_OF_TEXT.encode()
        return b"".join(end if i == self.eot else bytes([i]) for i in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


class BPETokenizer(_Shared):
    """A BPE tokenizer does byte-level byte-pair encoding, by tiktoken.

    `tokens` are the bytes of the ordinary ids in their order, and `special` the special tokens, which have all other
    ids; by default end-of-text alone, as the last id. `kind` is `gpt2` for OpenAI's vocabulary and `bpe` for any
    other. Raises UserError for special tokens that could be confused with ordinary ones, and ValueError where the ids
    have gaps.
    """

    def __init__(
        self, tokens: Sequence[bytes], pattern: str, kind: str = "bpe", special: SpecialTokens | None = None
    ) -> None:
        import tiktoken

        self.special = special or SpecialTokens.after(len(tokens))
        self.kind = kind if len(self.special.ids) == 1 else "bpe"  # OpenAI's vocabulary has one special token
        self.pattern = pattern
        self.tokens = tokens
        self.vocab_size = len(tokens) + len(self.special.ids)
        taken = set(self.special.ids.values())
        if any(i >= self.vocab_size for i in (*taken, *self.special.ends, *self.special.roles.values())):
            raise ValueError("the ids of the special tokens leave a gap")
        if self.special.ids.keys() - {END_OF_TEXT}:
            require_no_ordinary(self.special.ids, tokens, byte_of_character())
        self.ordinary_ids = [i for i in range(self.vocab_size) if i not in taken]
        self.encoding = tiktoken.Encoding(
            self.kind,
            pat_str=_FAST_GPT2_PATTERN if pattern == GPT2_PATTERN else pattern,
            mergeable_ranks=dict(zip(tokens, self.ordinary_ids, strict=True)),
            special_tokens=dict(self.special.ids),
        )

    def encode(self, text: str, specials: bool = False) -> list[int]:
        ids: list[int] = []
        for piece in self.special.pieces(_valid_unicode(text), specials):
            ids += [piece] if isinstance(piece, int) else self._encode_ordinary(piece).tolist()
        return ids

    def encode_array(self, text: str, specials: bool = False) -> "np.ndarray":
        import numpy as np

        arrays = [
            np.array([piece], dtype=np.uint32) if isinstance(piece, int) else self._encode_ordinary(piece)
            for piece in self.special.pieces(_valid_unicode(text), specials)
        ]
        return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, dtype=np.uint32), *arrays])

    def _encode_ordinary(self, text: str) -> "np.ndarray":
        """Return the ids of valid text without special tokens, uint32 (tokens,)."""
        if has_long_run(text):
            return encode_long_runs(self.encoding, text, self.pattern == GPT2_PATTERN)
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self.encoding.decode_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        tokens = " ".join(base64.b64encode(t).decode() for t in self.tokens)
        is_plain = self.special == SpecialTokens.after(len(self.tokens))
        special = {} if is_plain else {"special_tokens": self.special.to_json()}
        return {"kind": self.kind, "pattern": self.pattern, "tokens": tokens, **special}


def has_ids_of(tokenizer: Tokenizer, other: Tokenizer) -> bool:
    """Return whether every id of `other` stands for the same token in `tokenizer`, which may have further ids."""
    if isinstance(tokenizer, BPETokenizer) and isinstance(other, BPETokenizer):
        ours, others = ((bpe.tokens, bpe.pattern, bpe.ordinary_ids) for bpe in (tokenizer, other))
        return ours == others and other.special.ids.items() <= tokenizer.special.ids.items()
    return tokenizer.to_json() == other.to_json()


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

    The texts may be a stream, of which only some are held in memory. Special tokens in them are skipped, because no
    other token is needed for their characters. A text with too few pairs to merge results in fewer ids. Raises
    UserError for a size that cannot hold the 256 bytes and the special tokens, and for special tokens that could be
    confused with other tokens.
    """
    import rustbpe

    require_bpe(vocab_size, specials)
    size = vocab_size - 1 - len(specials)
    trainer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]  (compiled, without types)
    special = SpecialTokens.after(0, specials)
    ordinary = (piece for text in texts for piece in special.pieces(text, markers=True) if isinstance(piece, str))
    texts = itertools.chain.from_iterable(map(trainable, ordinary))
    trainer.train_from_iterator(texts, vocab_size=size, buffer_size=TEXTS_AT_A_TIME, pattern=_FAST_GPT2_PATTERN)
    tokens = [bytes(token) for token, _ in trainer.get_mergeable_ranks()]
    return BPETokenizer(tokens, GPT2_PATTERN, special=SpecialTokens.after(len(tokens), specials))


def require_bpe(vocab_size: int, specials: Sequence[str] = ()) -> None:
    """Raise UserError for a size and special tokens with which `train_bpe` would fail."""
    if vocab_size < (least := LEAST_BPE + len(specials)):
        raise UserError(f"a BPE vocabulary of {vocab_size} is too small; it needs at least {least} ids")
    require_distinct(specials)
    require_no_ordinary(specials, (bytes([b]) for b in range(256)), byte_of_character())


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
                if len(set(tokens)) < len(tokens):
                    raise ValueError("not a vocabulary")
                return BPETokenizer(tokens, value["pattern"], kind, _special_from_json(value, len(tokens)))
    except (KeyError, TypeError, AttributeError, ValueError, UserError):
        pass
    raise UserError("the tokenizer description cannot be read; prepare the dataset again")


def _special_from_json(value: dict[str, Any], tokens: int) -> SpecialTokens:
    """Return the special tokens of a BPE's description. Raises ValueError, TypeError, KeyError, UserError."""
    if "special_tokens" in value:
        return SpecialTokens.from_json(value["special_tokens"])
    # An older form: the id of end-of-text, and the texts of the markers that follow all other ids.
    markers, eot = value.get("specials", []), value.get("eot", tokens)
    if not isinstance(markers, list) or not all(isinstance(marker, str) for marker in markers):
        raise ValueError("not special tokens")
    if not 0 <= eot <= tokens:
        raise ValueError("not the id of end-of-text")
    require_distinct(markers)
    return SpecialTokens.after(tokens, markers, eot)
