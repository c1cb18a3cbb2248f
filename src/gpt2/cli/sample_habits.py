"""Options of nanoGPT's sample.py, and what they are called in `gpt2 sample`."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from gpt2.cli.habits import is_path
from gpt2.errors import UserError

NANOGPT = ("out_dir", "init_from", "compile")
"""Options of nanoGPT's sample.py that `gpt2 sample` does not have."""
FLAGS = ("interactive", "stats", "json", "help")
"""Options of `gpt2 sample` that take no value."""
DEFAULT_FOLDER = "out"
"""Folder of nanoGPT's model, where no other is given."""


def sample_words(words: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """Return the words after `gpt2 sample`, with the model as the first one in place of nanoGPT's two options for it.

    note: receives a line about what was replaced. Raises UserError for two models, and for none.
    """
    rest, kept, models = list(words), list[str](), list[str]()
    found: dict[str, str] = {}
    dashless = list[str]()
    while rest:
        first = rest.pop(0)
        option, equals, value = first.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if name in NANOGPT and (first.startswith("--") or (equals and not is_path(first))):
            if not first.startswith("--"):
                dashless.append(first)
            found[name] = value if equals or not rest else rest.pop(0)
        elif first.startswith("--") and not equals and rest and name not in FLAGS:
            kept += [first, rest.pop(0)]
        elif first.startswith("-") and first != "-":
            kept.append(first)
        else:
            models.append(first)
    if "compile" in found:
        note(f"--compile={found['compile']} changes nothing here")
    asked = found.get("init_from", "resume")
    named = found.get("out_dir", DEFAULT_FOLDER) if asked == "resume" else asked
    if "out_dir" in found or "init_from" in found:
        if models and models != [named]:
            raise UserError(f"give the model once: {_line([models[0], *kept])}, or {_line([named, *kept])}")
        if dashless:
            raise UserError(f"{dashless[0]}: options begin with two dashes; use: {_line([named, *kept])}")
        note(f"the model has no option here: {_line([named, *kept])}")
        models = [named]
    elif not models:
        if not Path(DEFAULT_FOLDER).is_dir():
            raise UserError(f"gpt2 sample needs a MODEL, such as the folder of a run: {_line(['RUN', *kept])}")
        note(f"no model is given: taking {DEFAULT_FOLDER}, as in {_line([DEFAULT_FOLDER, *kept])}")
        models = [DEFAULT_FOLDER]
    return [*models, *kept]


def _line(words: Sequence[str]) -> str:
    return f"gpt2 sample {shlex.join(words)}"
