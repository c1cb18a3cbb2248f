"""The tokenizer of a preparation: which one the user asked for, and what it knows."""

from collections.abc import Sequence
from pathlib import Path

from gpt2.chat import with_speakers
from gpt2.data.corpora import Corpus, Input
from gpt2.data.sources import has_rows
from gpt2.errors import UserError
from gpt2.special_tokens import END_OF_TEXT
from gpt2.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer, gpt2_tokenizer

DEFAULT_VOCAB_SIZE = 4096
TOKENIZERS = ("char", "byte", "gpt2", "bpe")


def tokenizer_choice(
    tokenizer: str | Tokenizer | None, vocab_size: int | None, corpus: Corpus | None, source: str | Path
) -> tuple[str | Tokenizer, int]:
    """Return the tokenizer or its kind, and the size of a vocabulary to be trained. Raises UserError."""
    kind = tokenizer or (corpus.tokenizer if corpus else "gpt2")
    if vocab_size is not None and kind != "bpe":
        raise UserError(f"vocab_size={vocab_size} is for a tokenizer to be trained; add --tokenizer=bpe, or omit it")
    if corpus and corpus.is_large and kind in ("char", "bpe"):
        raise UserError(f"{source} is read only once, too rarely to make a {kind} tokenizer; name an existing one")
    if vocab_size is None:
        vocab_size = (corpus.vocab_size if corpus else None) or DEFAULT_VOCAB_SIZE
    return kind, vocab_size


def for_chat(
    kind: str | Tokenizer, field: str, parse_special: bool | None, inputs: Sequence[Input]
) -> tuple[str | Tokenizer, str, bool]:
    """Return the tokenizer, the field and `parse_special` of conversations. Raises UserError."""
    if parse_special is False:
        raise UserError("the speakers of conversations are special tokens; leave --no-parse_special out with --chat")
    if other := [i.name for i in inputs if not has_rows(Path(i.name))]:
        raise UserError(
            f"--chat reads rows of messages (.jsonl, .json, .parquet), and {other[0]} has none; write a .jsonl file, "
            'a line each: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
        )
    if kind != "bpe":
        made = {"char": lambda: CharTokenizer(""), "byte": ByteTokenizer, "gpt2": gpt2_tokenizer}
        kind = with_speakers(made[kind]() if isinstance(kind, str) else kind)
    return kind, "messages" if field == "text" else field, True


def special_tokens(kind: str | Tokenizer) -> set[str]:
    """Return the texts of the special tokens of a tokenizer, or of one of a kind that is made from the text."""
    if isinstance(kind, str):
        return set() if kind == "char" else {END_OF_TEXT}
    return set(kind.special.ids)
