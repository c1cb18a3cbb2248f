"""A tokenizer as a plain list of tokens, the form in which llm.c, llama.cpp and Hugging Face keep it."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from gpt2.errors import UserError
from gpt2.tokenizers import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    byte_of_character,
)

BYTE_OF = byte_of_character()
CHARACTER_OF = {b: c for c, b in BYTE_OF.items()}
LLMC_MAGIC, LLMC_VERSION = 20240328, 2
GPT2_SHA256 = "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13"
"""Of GPT-2's vocabulary in llm.c's form."""


def printable(token: bytes) -> str:
    """A token as GPT-2's files write it: every byte one printable character."""
    return "".join(CHARACTER_OF[b] for b in token)


def all_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every id; end-of-text as its thirteen letters, other special tokens as theirs."""
    return [
        END_OF_TEXT.encode() if i == tokenizer.eot else tokenizer.decode_bytes([i])
        for i in range(tokenizer.vocab_size)
    ]


def from_tokens(
    tokens: Sequence[bytes], eot: int | None, pattern: str = GPT2_PATTERN, specials: Sequence[str] = ()
) -> Tokenizer | None:
    """The tokenizer with these tokens, and after them these special ones; None where it is none of ours.

    Byte-level BPE is known by having all 256 bytes, and taken to merge in the order of its ids. Raises UserError for
    special tokens that are mistaken for others.
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


def merges(tokenizer: BPETokenizer) -> list[tuple[bytes, bytes]]:
    """The pairs that byte-pair encoding joins, in order: each token is the last join of those before it.

    Raises UserError for a vocabulary that was not made by joining.
    """
    rank = {token: i for i, token in enumerate(tokenizer.tokens)}
    pairs = []
    for limit, token in enumerate(tokenizer.tokens):
        if len(token) > 1:
            left, right = _split(token, rank, limit)
            pairs.append((left, right))
    return pairs


def _split(token: bytes, rank: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """The two parts that encoding a token with the ones below `limit` leaves of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joins = [rank.get(a + b, limit) for a, b in itertools.pairwise(parts)]
        best = min(range(len(joins)), key=joins.__getitem__)
        if joins[best] == limit:
            raise UserError(
                f"the tokenizer's token {token!r} is no join of two others, so its merges cannot be written"
            )
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def llmc_bytes(tokens: Sequence[bytes], eot: int) -> bytes:
    """llm.c's tokenizer file: 256 int32 of header, then the length and bytes of each token.

    Raises ValueError for a token of more than 255 bytes, which it cannot hold.
    """
    header = np.zeros(256, dtype="<i4")
    header[:4] = LLMC_MAGIC, LLMC_VERSION, len(tokens), eot
    return header.tobytes() + b"".join(bytes([len(t)]) + t for t in tokens)
