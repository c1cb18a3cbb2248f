"""Write docs/reference: the commands, the settings and the library, from the code.

    python docs/reference.py

Commands and options are those of the command line itself, settings those of `TrainConfig`, and the library what
`gpt2.__all__` names.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import cyclopts
from cyclopts.argument import Argument

import gpt2
from gpt2.cli import GROUPS, SECTIONS, TAKE_SETTINGS, make_app
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.text import request_for
from gpt2.training.config import TrainConfig
from gpt2.training.setting import Bounds

FOLDER = Path(__file__).parent / "reference"
MADE = "This page is made from the code by `python docs/reference.py`."


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    return {"commands.md": commands(), "settings.md": settings(), "library.md": library()}


def commands() -> str:
    """Return the page of the commands with their options, by the sections of `gpt2 --help`."""
    app = make_app()
    lines = ["# Commands", "", f"{MADE} `gpt2 COMMAND --help` shows the same.", ""]
    for section, members in SECTIONS.items():
        lines += [f"## {section}", ""]
        for name in members:
            if name.startswith("--"):
                continue
            for words in [(name, sub) for sub in GROUPS[name][1]] if name in GROUPS else [(name,)]:
                command = app
                for word in words:
                    command = command[word]
                lines += [*described(words, command, app.default_parameter), ""]
    return "\n".join(lines)


def described(words: tuple[str, ...], command: cyclopts.App, default: cyclopts.Parameter | None) -> Iterator[str]:
    """Yield the lines of one command."""
    yield f"### gpt2 {' '.join(words)}"
    yield ""
    yield re.split(r"\n *Parameters\n", inspect.getdoc(command.default_command) or "")[0].strip()
    arguments = command.assemble_argument_collection(default_parameter=default, parse_docstring=True)
    shown = [argument for argument in arguments if argument.show]
    if words in TAKE_SETTINGS:
        shown = [a for a in shown if a.name.removeprefix("--") not in TrainConfig.__annotations__]
        yield ""
        yield "It also takes every [setting](settings.md) of a run as an option."
    if shown:
        yield from table("option", map(option, shown))


def option(argument: Argument) -> tuple[str, str, str, str]:
    """Return names, default, values and text of an option."""
    names = ", ".join(map(code, argument.names))
    default = argument.field_info.default
    is_shown = argument.show_default and default is not False and default not in (inspect.Parameter.empty, None, ())
    text = " ".join((argument.parameter.help or "").split())
    if argument.required:
        text = f"{text} Required."
    return (
        names,
        code(default) if is_shown else "",
        values(argument.hint, marks(argument.field_info.annotation)),
        text,
    )


def marks(hint: Any) -> list[object]:
    """Return what stands next to a type, and next to the types inside it."""
    return [*getattr(hint, "__metadata__", ()), *(mark for part in get_args(hint) for mark in marks(part))]


def values(hint: Any, limiting: Iterable[object]) -> str:
    """Return the values that a type and the marks next to it allow, in a few words."""
    parts = list(parts_of(hint))
    bounds = "".join(dict.fromkeys(f", {limits(mark.requirement)}" for mark in limiting if isinstance(mark, Bounds)))
    found: list[str] = []
    for part in parts:
        if get_origin(part) is Literal:
            found += map(code, get_args(part))
        elif part in (int, float):
            found.append(("whole number" if part is int else "number") + bounds)
        elif part in (str, Path) and len(parts) > 1 and int in parts:
            found.append("a word")
    return (" or " if bounds else ", ").join(dict.fromkeys(found))


def parts_of(hint: Any) -> Iterator[Any]:
    """Yield the types of which a union, a list or a tuple consists."""
    if get_origin(hint) is Literal or not get_args(hint):
        yield hint
    else:
        for part in get_args(hint):
            yield from parts_of(part)


def limits(requirement: str) -> str:
    """Return the words of `Bounds` as a short range: `be at least 0 and at most 1,000` as `0 to 1,000`."""
    text = re.sub(r"^(be|lie) ", "", requirement)
    text = re.sub(r"^at least (\S+) and at most (\S+)$", r"\1 to \2", text)
    text = re.sub(r"\b1((?:,000){3,})", lambda zeros: f"10^{len(zeros[1]) // 4 * 3}", text)
    return text.replace("1e+", "10^")


def settings() -> str:
    """Return the page of the settings of a run, by group."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    texts = attribute_texts(TrainConfig)
    groups: dict[str, list[tuple[str, str, str, str]]] = {}
    for name, field in TrainConfig.__dataclass_fields__.items():
        kind, *found = get_args(hints[name])
        [title] = [
            getattr(group, "name", group)
            for mark in found
            if isinstance(mark, cyclopts.Parameter) and mark.group
            for group in (mark.group if isinstance(mark.group, tuple) else (mark.group,))
        ]
        default = "" if field.default is None else code(field.default)
        groups.setdefault(title, []).append((code(name), default, values(kind, found), texts[name]))
    lines = ["# Settings", "", MADE, ""]
    lines += [
        "A setting is an option of `gpt2 train` (`--batch_size=32`), a key of a recipe or of a run's `config.toml`,",
        "and an argument of `gpt2.TrainConfig`. An option overrides the recipe, and the recipe the default.",
    ]
    for title, rows in groups.items():
        lines += ["", f"## {title}", *table("setting", rows)]
    return "\n".join(lines) + "\n"


def library() -> str:
    """Return the page of what `import gpt2` offers."""
    lines = ["# Library", "", f"{MADE} [The page on the library](../library.md) has examples."]
    for name in gpt2.__all__:
        found = getattr(gpt2, name)
        lines += ["", f"## gpt2.{name}"]
        if name == "TrainConfig":
            lines += ["", inspect.getdoc(found) or "", "", "[Settings](settings.md) lists its fields."]
        elif inspect.isclass(found) and issubclass(found, Exception):
            lines += ["", inspect.getdoc(found) or ""]
        else:
            lines += entry(name, found)
        if name == "generate":
            lines += ["", "The settings are:", *table("setting", sampling_settings())]
        if name in ("GPT", "GPTConfig"):
            for method in public_methods(found):
                lines += ["", f"### {name}.{method}", *entry(f"{name}.{method}", getattr(found, method))]
    return "\n".join(lines) + "\n"


def sampling_settings() -> Iterator[tuple[str, str, str, str]]:
    """Yield name, default, values and text of each setting of `gpt2.generate`."""
    defaults = {f.name: f.default for f in fields(Sampling)} | {
        a.name: a.default for a in inspect.signature(request_for).parameters.values() if a.kind is a.KEYWORD_ONLY
    }
    texts = {"max_new_tokens": "Maximum number of tokens in a text."}
    texts |= attribute_texts(Request) | attribute_texts(Sampling)
    for name, default in defaults.items():
        yield code(name), code(default), "", texts[name]


def public_methods(kind: type) -> list[str]:
    """Return the names of the methods with a docstring that this project defines in a class or its bases."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith("gpt2.")]
    names = {name: getattr(kind, name) for base in bases for name in vars(base) if not name.startswith("_")}
    return [name for name, method in names.items() if inspect.isroutine(method) and inspect.getdoc(method)]


def entry(name: str, found: Any) -> list[str]:
    """Return the signature and the docstring of a function or class, and the texts of a class's fields."""
    lines = ["", *(f"    {line}" for line in signature(name, found).splitlines()), "", inspect.getdoc(found) or ""]
    texts = attribute_texts(found) if inspect.isclass(found) else {}
    return lines + ([""] if texts else []) + [f"- `{field}`: {text}" for field, text in texts.items()]


def signature(name: str, found: Any) -> str:
    """Return the signature of a function or class, one argument in a line where it is long."""
    whole = inspect.signature(found)
    arguments = [a for a in whole.parameters.values() if a.name != "self"]
    returned = "" if inspect.isclass(found) else inspect.formatannotation(whole.return_annotation).strip("'")
    words = [readable(str(argument)) for argument in arguments]
    is_named = [argument.kind is inspect.Parameter.KEYWORD_ONLY for argument in arguments]
    if True in is_named and inspect.Parameter.VAR_POSITIONAL not in {argument.kind for argument in arguments}:
        words.insert(is_named.index(True), "*")
    end = f" -> {readable(returned)}" if returned not in ("", "None") else ""
    text = f"{name}({', '.join(words)}){end}"
    return text if len(text) <= 100 else f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){end}"


def readable(text: str) -> str:
    """Return a part of a signature without quotes around types, names of modules and addresses of functions."""
    text = re.sub(r"<function (?:\w+\.)*(<?\w+>?) at 0x\w+>", r"\1", text)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("<lambda>", "…")


def attribute_texts(kind: type) -> Mapping[str, str]:
    """Return the text below each field of a class, in one line."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def code(value: object) -> str:
    """Return a value as code, several values as a command line has them."""
    if isinstance(value, tuple) and value:
        return f"`{' '.join(map(str, value))}`"
    text = repr(value) if isinstance(value, str) and (not value or value != value.strip()) else str(value)
    return f"`{text}`"


def table(first: str, rows: Any) -> Iterator[str]:
    """Yield the lines of a table of names, defaults, and texts with the allowed values."""
    yield from ("", f"| {first} | default | |", "|---|---|---|")
    for names, default, allowed, text in rows:
        yield f"| {names} | {default} | {text.replace('|', '&#124;')}{f' *Values: {allowed}.*' if allowed else ''} |"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
