"""Write docs/reference: the commands, the settings and the library, from the code.

    python docs/reference.py

Commands and options are those of the command line itself, settings those of `TrainConfig`, and the library what
`gpt2.__all__` names.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import cyclopts
from cyclopts.argument import Argument

import gpt2
from gpt2.cli import GROUPS, SECTIONS, TAKE_SETTINGS, make_app
from gpt2.training.config import TrainConfig
from gpt2.training.setting import Bounds

FOLDER = Path(__file__).parent / "reference"
MADE = "This page is made from the code by `python docs/reference.py`."


def pages() -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    return {"commands.md": commands(), "settings.md": settings(), "library.md": library()}


def commands() -> str:
    """Return the page of the commands with their options."""
    app = make_app()
    names = [name for section in SECTIONS.values() for name in section if not name.startswith("--")]
    lines = ["# Commands", "", f"{MADE} `gpt2 COMMAND --help` shows the same.", ""]
    for name in names:
        for words in [(name, sub) for sub in GROUPS[name][1]] if name in GROUPS else [(name,)]:
            command = app
            for word in words:
                command = command[word]
            lines += [*described(words, command), ""]
    return "\n".join(lines)


def described(words: tuple[str, ...], command: cyclopts.App) -> Iterator[str]:
    """Yield the lines of one command."""
    yield f"## gpt2 {' '.join(words)}"
    yield ""
    yield re.split(r"\n *Parameters\n", inspect.getdoc(command.default_command) or "")[0].strip()
    arguments = [argument for argument in command.assemble_argument_collection(parse_docstring=True) if argument.show]
    if words in TAKE_SETTINGS:
        arguments = [a for a in arguments if a.name.lstrip("-").replace("-", "_") not in TrainConfig.__annotations__]
        yield ""
        yield "It also takes every [setting](settings.md) of a run as an option."
    if arguments:
        yield from table("option", map(option, arguments))


def option(argument: Argument) -> tuple[str, str, str]:
    """Return name, default and text of an option."""
    default = argument.field_info.default
    is_shown = argument.show_default and default not in (inspect.Parameter.empty, None, False, ())
    text = " ".join((argument.parameter.help or "").split())
    if argument.required:
        text = f"{text} Required."
    name = argument.name
    if name.startswith("--"):
        name = f"--{name.removeprefix('--').replace('-', '_')}"
    return name, code(default) if is_shown else "", text


def settings() -> str:
    """Return the page of the settings of a run, by group."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    texts = attribute_texts(TrainConfig)
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for name, field in TrainConfig.__dataclass_fields__.items():
        kind, *marks = get_args(hints[name])
        [title] = [
            getattr(group, "name", group)
            for mark in marks
            if isinstance(mark, cyclopts.Parameter) and mark.group
            for group in (mark.group if isinstance(mark.group, tuple) else (mark.group,))
        ]
        bounds = [mark.requirement for mark in marks if isinstance(mark, Bounds)]
        text = texts[name] + "".join(f" It must {requirement}." for requirement in bounds)
        literals = [part for part in (kind, *get_args(kind)) if get_origin(part) is Literal]
        if choices := [choice for literal in literals for choice in get_args(literal)]:
            text += f" Choices: {', '.join(map(code, choices))}."
        groups.setdefault(title, []).append((name, "" if field.default is None else code(field.default), text))
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
    lines = ["# Library", "", f"{MADE} README has examples."]
    for name in gpt2.__all__:
        found = getattr(gpt2, name)
        lines += ["", f"## gpt2.{name}", ""]
        if not (inspect.isclass(found) and issubclass(found, Exception)) and name != "TrainConfig":
            lines += [f"    {line}" for line in signature(name, found).splitlines()] + [""]
        lines.append(inspect.getdoc(found) or "")
        if name == "TrainConfig":
            lines += ["", "[Settings](settings.md) lists its fields."]
    return "\n".join(lines) + "\n"


def signature(name: str, found: Any) -> str:
    """Return the signature of a function or class, one argument in a line where it is long."""
    arguments = [readable(str(argument)) for argument in inspect.signature(found).parameters.values()]
    text = readable(f"{name}{inspect.signature(found)}")
    return text if len(text) <= 100 else f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"


def readable(text: str) -> str:
    """Return a part of a signature without quotes around types, names of modules and addresses of functions."""
    text = re.sub(r"<function (?:\w+\.)*(<?\w+>?) at 0x\w+>", r"\1", text)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("<lambda>", "…")


def attribute_texts(kind: type) -> Mapping[str, str]:
    """Return the text below each field of a class, in one line."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): .*?\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def code(value: object) -> str:
    """Return a value as code."""
    text = repr(value) if isinstance(value, str) and (not value or value != value.strip()) else str(value)
    return f"`{text}`"


def table(first: str, rows: Any) -> Iterator[str]:
    """Yield the lines of a table of names, defaults and texts."""
    yield from ("", f"| {first} | default | |", "|---|---|---|")
    for name, default, text in rows:
        yield f"| `{name}` | {default} | {text.replace('|', '&#124;')} |"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
