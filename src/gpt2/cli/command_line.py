"""What the words of a command line mean: dashes, home folders, bounds of numbers, and names with typing errors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import cyclopts
from cyclopts.argument import Argument, ArgumentCollection

from gpt2.errors import UserError
from gpt2.spelling import nearest
from gpt2.training.setting import OUTPUT, PATH, Bounds

DASH = "\0"
"""Stands for `-`, which the library takes for an option. No word of a command line can contain this character."""


def without_dashes(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with DASH in place of `-`."""
    return [DASH if word == "-" else word for word in words]


def read_values(arguments: ArgumentCollection) -> None:
    """Give every value its meaning, and check the numbers.

    As a path, `-` is standard input or output, and a `~` at the start is a home folder; as a text, both stay. Raises
    UserError for a number that is not within its bounds, and for a fraction where a whole number is needed.
    """
    for argument in arguments:
        argument.tokens = [token.evolve(value=_meant(argument, token.value)) for token in argument.tokens]
        _check_number(argument)


def _meant(argument: Argument, value: str) -> str:
    """Return what a value of an argument stands for."""
    kinds = _kinds(argument.field_info.annotation)
    if value in (DASH, "-"):
        if OUTPUT in kinds:
            return "/dev/stdout"
        return "/dev/stdin" if PATH in kinds else "-"
    return os.path.expanduser(value) if PATH in kinds or OUTPUT in kinds else value  # noqa: PTH111


def _kinds(hint: object) -> list[object]:
    """Return the marks next to a type, also to a type inside it; a `Path` has the mark PATH."""
    found = [PATH] if hint is Path else list(getattr(hint, "__metadata__", ()))
    return found + [kind for part in get_args(hint) for kind in _kinds(part)]


def _check_number(argument: Argument) -> None:
    """Raise UserError for a fraction where a whole number is needed, and for a number outside its bounds."""
    if not argument.tokens:
        return
    if argument.hint in (int, int | None):
        for token in argument.tokens:
            if "." in token.value:  # the library would round it
                raise UserError(f"{token.keyword} is {token.value}; it must be a whole number")
    for bounds in _kinds(argument.field_info.annotation):
        if isinstance(bounds, Bounds):
            bounds.check(argument.field_info.name, argument.convert())


def explained(error: cyclopts.CycloptsError) -> str:
    """Return the line for a command line that the library cannot read. Only similar names are suggested."""
    match error:
        case cyclopts.UnknownOptionError(token=token):
            option = (token.keyword or token.value).partition("=")[0]
            known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
            line = f"Unknown option: {option}."
            close = nearest(option, [name for name in known if name.startswith("--")]) if len(option) > 2 else None
            line += f" Did you mean {close}?" if close else ""
        case cyclopts.UnknownCommandError(unused_tokens=[word, *_], app=app) if app is not None:
            known = [name for name in app if not name.startswith("-")]
            close = nearest(word, known)
            hint = f'Did you mean "{close}"?' if close else f"Available commands: {', '.join(known)}."
            line = f'Unknown command "{word}". {hint}'
        case _:
            line = str(error)
    return " ".join(line.replace(DASH, "-").split())
