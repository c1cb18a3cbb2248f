"""Text to token ids and back: characters, bytes, GPT-2's BPE, and a BPE trained on one's own text.

A tokenizer travels with the data and the model it belongs to as a JSON object; `from_json` restores it.
"""

import base64
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

END_OF_TEXT = "<|endoftext|>"

# GPT-2's pre-split of text into words (openai/gpt-2, encoder.py), in the form tiktoken ships it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The same cuts, sooner: the regex engine of tiktoken and rustbpe backtracks only where there is look-around, and what
# has none stands in one group here. (Only one whitespace before something printable gets as far as the last part.)
_FAST_GPT2_PATTERN = r"""(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s+"""
GPT2_VOCAB_FILES = {  # content: name of the file in tiktoken's cache
    "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
}


class Tokenizer(Protocol):
    """What every tokenizer has. Ids are 0 … vocab_size - 1."""

    @property
    def kind(self) -> str:
        """`char`, `byte`, `gpt2` or `bpe`."""
        ...

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        ...

    @property
    def eot(self) -> int | None:
        """Id of the end-of-text token, which separates documents; None where there is none."""
        ...

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids of `text`. With `specials`, `<|endoftext|>` in it is the token and not thirteen letters."""
        ...

    def encode_array(self, text: str) -> "np.ndarray":
        """`encode(text)` as uint32 (tokens,), which may be read-only, and without a Python object for each id."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes the tokens stand for; a character may be split over several tokens."""
        ...

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal tokenizer."""
        ...


def _whole(text: str) -> str:
    """The text as UTF-8 can hold it and as tiktoken reads it: halves of surrogate pairs joined, or else U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class CharTokenizer:
    """One id a character, in the order of their code points, as in nanoGPT's shakespeare_char."""

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
        """Ids by code point, uint32: `vocab_size` for one that has none, as has the last, which no character has."""
        import numpy as np

        table = np.full(max(map(ord, self.characters), default=0) + 2, self.vocab_size, dtype=np.uint32)
        for c, i in self._ids.items():
            table[ord(c)] = i
        return table

    def _unknown(self, c: str) -> UserError:
        return UserError(
            f"the text has the character {c!r} (U+{ord(c):04X}), which is not among the "
            f"{self.vocab_size} characters this tokenizer was made from; leave it out"
        )

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return "".join(self.characters[i] for i in ids).encode()

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer:
    """The 256 bytes of UTF-8, and end-of-text as id 256."""

    kind = "byte"
    vocab_size = 257
    eot = 256

    def encode(self, text: str, specials: bool = False) -> list[int]:
        if not specials:
            return list(_whole(text).encode())
        first, *rest = _whole(text).split(END_OF_TEXT)
        ids = list(first.encode())
        for part in rest:
            ids += [self.eot, *part.encode()]
        return ids

    def encode_array(self, text: str) -> "np.ndarray":
        import numpy as np

        return np.frombuffer(_whole(text).encode(), dtype=np.uint8).astype(np.uint32)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(END_OF_TEXT.encode() if i == self.eot else bytes([i]) for i in ids)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}


class BPETokenizer:
    """Byte-level byte-pair encoding, run by tiktoken.

    `tokens` are the bytes of each id in order, but for end-of-text, whose id is `eot`; by default the last.
    `kind` is `gpt2` for OpenAI's vocabulary and `bpe` for any other.
    """

    def __init__(self, tokens: Sequence[bytes], pattern: str, kind: str = "bpe", eot: int | None = None) -> None:
        import tiktoken

        self.kind = kind
        self.pattern = pattern
        self.tokens = tokens
        self.eot = len(tokens) if eot is None else eot
        self.vocab_size = len(tokens) + 1
        self.encoding = tiktoken.Encoding(
            kind,
            pat_str=_FAST_GPT2_PATTERN if pattern == GPT2_PATTERN else pattern,
            mergeable_ranks={token: i + (i >= self.eot) for i, token in enumerate(tokens)},
            special_tokens={END_OF_TEXT: self.eot},
        )

    def encode(self, text: str, specials: bool = False) -> list[int]:
        return self.encoding.encode(text, allowed_special="all") if specials else self.encoding.encode_ordinary(text)

    def encode_array(self, text: str) -> "np.ndarray":
        return self.encoding.encode_to_numpy(_whole(text), disallowed_special=())

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self.encoding.decode_bytes(ids)

    def to_json(self) -> dict[str, Any]:
        tokens = " ".join(base64.b64encode(t).decode() for t in self.tokens)
        elsewhere = {} if self.eot == len(self.tokens) else {"eot": self.eot}
        return {"kind": self.kind, "pattern": self.pattern, "tokens": tokens, **elsewhere}


@functools.cache
def gpt2_tokenizer() -> BPETokenizer:
    """OpenAI's GPT-2 vocabulary of 50,257 tokens, from tiktoken's cache or its download.

    Raises UserError when it is neither cached nor to be downloaded.
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


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learn a byte-pair vocabulary of `vocab_size` ids, end-of-text among them, from `texts`.

    Trains with rustbpe, or with Hugging Face tokenizers where rustbpe is not installed. Raises UserError
    for a size that cannot hold the 256 bytes and end-of-text.
    """
    if vocab_size < 257:
        raise UserError(f"a BPE vocabulary of {vocab_size} is too small; it needs at least 257 ids")
    try:
        import rustbpe
    except ImportError:
        return BPETokenizer(_train_with_hugging_face(texts, vocab_size - 1), GPT2_PATTERN)
    trainer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]  (compiled, without types)
    trainer.train_from_iterator(iter(texts), vocab_size=vocab_size - 1, pattern=_FAST_GPT2_PATTERN)
    return BPETokenizer([bytes(token) for token, _ in trainer.get_mergeable_ranks()], GPT2_PATTERN)


def _train_with_hugging_face(texts: Iterable[str], size: int) -> list[bytes]:
    """The tokens of a byte-level BPE trained by Hugging Face tokenizers: 256 bytes, then its merges."""
    import json

    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError("training a BPE needs rustbpe or tokenizers; pip install rustbpe") from None

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(GPT2_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    to_byte = byte_of_character()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merged = [bytes(to_byte[c] for c in left + right) for left, right in merges]
    return list(dict.fromkeys([bytes([i]) for i in range(256)] + merged))


def byte_of_character() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, reversed (openai/gpt-2, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def from_json(value: dict[str, Any]) -> Tokenizer:
    """The tokenizer a `to_json` object describes.

    Raises UserError for an object that describes none.
    """
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
                return BPETokenizer(tokens, value["pattern"], kind, value.get("eot"))
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    raise UserError("the tokenizer description cannot be read; prepare the dataset again")
