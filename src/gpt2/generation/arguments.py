"""Checks of the arguments of generated texts: each raises a line that says what was given, and what is expected."""

import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from gpt2.errors import UserError, require
from gpt2.model import GPT


def require_model_and_tokenizer(model: object, tokenizer: object) -> None:
    """Raise UserError unless these are a GPT and a tokenizer."""
    how = "give both as `model, tokenizer = gpt2.load(NAME)` returns them"
    is_compiled = isinstance(getattr(model, "_orig_mod", None), GPT)
    require(
        not is_compiled, "model is compiled; give the one that torch.compile was given, whose weights are the same"
    )
    require(isinstance(model, GPT), f"model is {shown(model)}, which is no GPT; {how}")
    is_tokenizer = hasattr(tokenizer, "decode_bytes") and hasattr(tokenizer, "special")
    require(is_tokenizer, f"tokenizer is {shown(tokenizer)}, which is none of this package; {how}")


def require_number(name: str, value: object) -> None:
    """Raise UserError for anything but a real number."""
    require(_is_number(value), f"{name} is {shown(value)}; it must be a number")


def require_whole_number(name: str, value: Any, least: int = 0) -> None:
    """Raise UserError for anything but a whole number from `least` on."""
    require(_is_whole_number(value), f"{name} is {shown(value)}; it must be a whole number")
    require(value >= least, f"{name} is {value}; it must be at least {least}")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Return token ids, given as anything that holds them. Raises UserError."""
    ids = _items(value)
    if ids is None or not all(map(_is_token_id, ids)):
        raise UserError(f"{name} is {shown(value)}; it must be a list of token ids, such as [11, 13]")
    return tuple(map(int, ids))


def biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Return pairs of a token id and a number, given as pairs or as a mapping. Raises UserError."""
    given = _items(value.items() if isinstance(value, Mapping) else value)
    pairs = [_items(pair) or [] for pair in ([None] if given is None else given)]
    if not all(len(pair) == 2 and _is_token_id(pair[0]) and _is_number(pair[1]) for pair in pairs):
        raise UserError(f"{name} is {shown(value)}; it must give a number for each token id, such as {{11: -2.5}}")
    return tuple((int(token_id), float(bias)) for token_id, bias in pairs)


def stop_strings(value: Any) -> list[str]:
    """Return the strings that end a text, given as one or as a list. Raises UserError, also for an empty one."""
    stops = [value] if isinstance(value, str) else _items(value)
    if stops is None or not all(isinstance(stop, str) for stop in stops):
        raise UserError(f"stop is {shown(value)}; it must be a text, or a list of texts")
    require("" not in stops, "stop has an empty text, which is in every text; leave it out")
    return stops


def shown(value: object) -> str:
    """Return a value, shortened to a part of a line, and its type."""
    return f"{' '.join(reprlib.repr(value).split())} ({type(value).__name__})"


def _items(value: Any) -> list[Any] | None:
    """Return the items of a value; None if it has none, as a number."""
    try:
        return list(value)
    except TypeError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole_number(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_token_id(value: Any) -> bool:
    return _is_whole_number(value) and value >= 0
