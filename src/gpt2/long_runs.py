"""Encodes and trains on text with very long runs of white space, which end the regex engine of tiktoken and rustbpe.

GPT-2's pattern makes one word of such a run. The run is found here, and only the text around it goes to the engine.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Characters that `\\s` matches in the engine. Python's own `\\s` also has \\x1c to \\x1f."""
LONG_RUN = 100_000
"""Number of white space characters in a row from which on a run may be kept from the engine, whose limit is a
million."""


def has_long_run(text: str) -> bool:
    """Return whether the text has at least 2 * LONG_RUN white space characters in a row; it may with fewer."""
    windows = range(0, len(text) - LONG_RUN + 1, LONG_RUN)
    return any(text[at].isspace() and text[at : at + LONG_RUN].isspace() for at in windows)


def split_long_runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the sections of a text, and whether each is one word of GPT-2's pattern: a long run of white space.

    The last white space character before a printable one is not part of the run's word.
    """
    begin = 0
    for run in re.finditer(f"(?<![{WHITE_SPACE}])[{WHITE_SPACE}]{{{LONG_RUN},}}", text):
        end = run.end() - (run.end() < len(text))
        yield text[begin : run.start()], False
        yield text[run.start() : end], True
        begin = end
    yield text[begin:], False


def encode_long_runs(encoding: "tiktoken.Encoding", text: str, is_gpt2s: bool) -> "np.ndarray":
    """Return the ids of a text without surrogates, uint32 (tokens,).

    `is_gpt2s` is whether the pattern of `encoding` is GPT-2's. Raises UserError where another pattern fails.
    """
    import numpy as np

    if is_gpt2s:
        ids: list[int] = []
        for piece, is_word in split_long_runs(text):
            ids += encoding._encode_single_piece(piece) if is_word else encoding.encode_ordinary(piece)
        return np.array(ids, dtype=np.uint32)
    try:
        return encoding.encode_to_numpy(text, disallowed_special=())
    except ValueError:
        raise UserError(
            "the text has more white space in a row than this tokenizer can read; remove some of it"
        ) from None


def trainable(text: str) -> Iterator[str]:
    """Yield the text for rustbpe, in sections if it has long runs, which are cut."""
    if not has_long_run(text):
        yield text
        return
    for section, is_word in split_long_runs(text):
        size = LONG_RUN if is_word else max(len(section), 1)
        yield from (section[at : at + size] for at in range(0, len(section), size))
