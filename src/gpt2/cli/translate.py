"""Rewrites a command line with options of other programs, which `habits.py` lists."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2.cli.habits import BENCH, FLAGS, SWITCH_VALUES, SWITCHES, TRAIN, Target, Typed, is_path
from gpt2.cli.programs import refuse_programs
from gpt2.cli.sample_habits import sample_words
from gpt2.errors import UserError
from gpt2.spelling import nearest
from gpt2.training import recipes
from gpt2.training.config import HINTS

BENCHMARKS = ("train", "sample", "data", "serve")
BENCH_EXAMPLES = """\
  gpt2 bench train shakespeare_char_cpu      # tokens/s, time by phase and memory of training; seconds on a laptop
  gpt2 bench train gpt2 --batch_size=4       # the same for the 124M model, which takes minutes without a GPU
  gpt2 bench sample gpt2                     # tokens/s of generating text, and the time to the first token
  gpt2 bench data mine                       # tokens/s of reading batches from a dataset
  gpt2 bench serve http://127.0.0.1:8000 --concurrency=8    # tokens/s and waiting times of a server"""
"""What `gpt2 bench` can do, for users who do not say what to measure."""


@dataclass(frozen=True)
class Word:
    """A word is an option with its value, or a word that is neither."""

    name: str
    """Name of the option with underscores and without its two dashes; `-b` for a short one, empty for no option."""
    value: str | None
    """The value, where there is one; the word itself for no option."""
    typed: tuple[str, ...]
    """The words of the command line."""

    @property
    def label(self) -> str:
        """Return the option as it was typed; a long one in one word."""
        return ("=" if self.typed[0].startswith("--") else " ").join(self.typed)


@dataclass
class Rewriting:
    """Collects the words of the new command line, and what is reported about it."""

    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    """What to do instead of the words that have no equivalent."""
    fixes: list[str] = field(default_factory=list)
    """What is wrong with words that have an equivalent which the user should know."""


def translated(words: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """Return a command line with the options of this program in place of those of other programs.

    note: receives a line about each option that is replaced. Raises UserError, with the right command line, for
    options and commands that have no equivalent.
    """
    given = list(words)
    is_question = bool({"--help", "--version"} & set(given)) or given[-1:] == ["-h"]
    match given:
        case [("bench" | "train" | "plan" | "sample" | "prepare"), *_] if is_question:
            return given
        case ["bench"]:
            note(BENCH_EXAMPLES)
            raise UserError("name what to measure (train, sample, data or serve), as above")
        case ["bench", name, *_] if name in BENCHMARKS:
            return _training(["bench", "train"], given[2:], TRAIN | BENCH, note) if name == "train" else given
        case ["bench", *rest]:
            note("gpt2 bench is gpt2 bench train here; gpt2 bench sample, data and serve measure other speeds")
            return _training(["bench", "train"], rest, TRAIN | BENCH, note)
        case [("train" | "plan") as name, *rest]:
            return _training([name], rest, TRAIN, note)
        case ["sample", *rest]:
            return ["sample", *sample_words(rest, note)]
        case ["prepare", path] if not is_path(path):
            refuse_programs([path], _without_notes)
        case [_, *_]:
            refuse_programs(given, _without_notes)
    return given


def _without_notes(words: list[str]) -> list[str]:
    """Return a command line with the options of this program."""
    return translated(words, lambda _: None)


def _training(
    command: list[str], rest: list[str], table: Mapping[str, tuple[str, Target]], note: Callable[[str], None]
) -> list[str]:
    """Return the command line of a command that takes the settings of a run."""
    parsed = list(_parsed(rest, table))
    typed: dict[str, str] = {word.name: word.value or "" for word in parsed if word.name}
    typed.setdefault("nproc", typed.get("nproc_per_node", os.environ.get("WORLD_SIZE", "1")))
    new = Rewriting()
    for word in parsed:
        if word.name in table:
            _replace(word, table[word.name], typed, new)
        elif word.name:
            new.words += [word.label] if word.name in SWITCHES else word.typed
        else:
            _positional(word.typed[0], table, typed, new)
    if problems := new.fixes + new.answers:
        line = shlex.join(["gpt2", *command, *new.words])
        raise UserError(f"{'; '.join(problems)}; {'the rest of the command' if new.answers else 'use'}: {line}")
    for line in new.notes:
        note(line)
    return [*command, *new.words]


def _parsed(words: Sequence[str], table: Mapping[str, object]) -> Iterator[Word]:
    """Yield the options with their values, and the other words."""
    rest = list(words)
    while rest:
        first = rest.pop(0)
        before, equals, value = first.partition("=")
        name = before[2:].replace("-", "_") if first.startswith("--") else before
        if first == "--" or not first.startswith("-") or (not first.startswith("--") and name not in table):
            yield Word("", first, (first,))
        elif equals:
            yield Word(name, value, (first,))
        elif rest and _is_value(name, rest[0], table):
            yield Word(name, rest[0], (first, rest.pop(0)))
        else:
            yield Word(name, None, (first,))


def _is_value(name: str, following: str, table: Mapping[str, object]) -> bool:
    """Return whether the word after an option is its value."""
    if name in FLAGS:
        return following.lower() in SWITCH_VALUES
    return not following.startswith("--") and following not in table and name.removeprefix("no_") not in FLAGS


def _replace(word: Word, entry: tuple[str, Target], typed: Typed, new: Rewriting) -> None:
    """Add what stands for an option of another program."""
    program, target = entry
    value = "True" if word.value is None and word.name in FLAGS else word.value or ""
    found = _resolved(target, value, typed)
    if not found:
        new.notes.append(f"{word.label} changes nothing here")
    elif not found.startswith("--"):
        new.answers.append(f"{word.label} of {program}: {found}")
    elif "=" in found:
        new.notes.append(f"{word.label} is {found} here")
        if found not in new.words:  # two options can stand for one
            new.words.append(found)
    else:
        new.notes.append(f"{word.typed[0].partition('=')[0]} is {found} here")
        is_switch = found.removeprefix("--") in SWITCHES
        value = SWITCH_VALUES.get(value.lower(), value) if is_switch else value
        new.words.append(f"{found}={value}" if value else found)


def _resolved(target: Target, value: str, typed: Typed) -> str:
    """Return the text that stands for an option with this value; see `Target`."""
    if callable(target):
        return target(value, typed)
    if isinstance(target, str):
        return target
    for key in (value, SWITCH_VALUES.get(value.lower(), value), "*"):
        if key in target:
            return target[key]
    return f"give {' or '.join(target)}"


def _positional(word: str, table: Mapping[str, tuple[str, Target]], typed: Typed, new: Rewriting) -> None:
    """Add a word that is no option, unless it stands for one or for a config file that does not exist."""
    name, equals, value = word.partition("=")
    if equals and (name in HINTS or name in table) and not is_path(word):
        new.fixes.append(f"{word}: options begin with two dashes")
        if name in table:
            _replace(Word(name, value, (f"--{word}",)), table[name], typed, new)
        else:
            new.words.append(f"--{word}")
    elif word.endswith(".py") and not is_path(word) and (recipe := _recipe_like(word)):
        new.fixes.append(f"there is no file {word}, and the recipe {recipe} is the most similar one here")
        new.words.append(recipe)
    else:
        new.words.append(word)


def _recipe_like(config_file: str) -> str | None:
    """Return the built-in recipe with the purpose of one of nanoGPT's config files."""
    stem = re.sub(r"^train_", "", Path(config_file).stem)
    return nearest(stem, recipes.names())
