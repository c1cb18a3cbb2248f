"""Text as ids and ids as text, for people who want to see what a tokenizer does."""

from pathlib import Path

from gpt2.errors import UserError
from gpt2.formats.open import named_tokenizer
from gpt2.tokenizers import Tokenizer

SEPARATORS = str.maketrans(",[]", "   ")
"""Characters between ids other than white space, as JSON and Python write lists."""
MAX_DIGITS = 18


def tokenizer_of(name: str, data_dir: str) -> Tokenizer:
    """Return the tokenizer that a name stands for: as in `named_tokenizer`, or that of a dataset in `data_dir`.

    Raises UserError where it is none of these.
    """
    in_data_dir = Path(data_dir) / name
    is_dataset = name not in ("gpt2", "byte") and not Path(name).exists() and in_data_dir.is_dir()
    return named_tokenizer(str(in_data_dir) if is_dataset else name)


def shown(tokenizer: Tokenizer, i: int) -> str:
    """Return a token as Python writes it: as text, or as bytes where it is only a part of a character."""
    content = tokenizer.decode_bytes([i])
    try:
        return repr(content.decode())
    except UnicodeDecodeError:
        return repr(content)


def parse_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids in a text, which are separated by white space or commas, perhaps in brackets.

    Raises UserError for what is no id of the tokenizer.
    """
    ids = []
    for word in text.translate(SEPARATORS).split():
        if not (word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS and int(word) < tokenizer.vocab_size):
            raise UserError(
                f"{word[:40]!r} is no id of the {tokenizer.kind} tokenizer; give numbers from 0 to "
                f"{tokenizer.vocab_size - 1}"
            )
        ids.append(int(word))
    return ids
