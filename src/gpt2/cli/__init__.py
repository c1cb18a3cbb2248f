"""The `gpt2` command. Heavy modules are imported inside the commands, so that `--help` answers at once."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TextIO, get_args

import cyclopts
from cyclopts.argument import Argument, ArgumentCollection, Token

from gpt2 import __version__
from gpt2.cli.bench_data import bench_data
from gpt2.cli.bench_sample import bench_sample
from gpt2.cli.bench_serve import bench_serve
from gpt2.cli.bench_train import bench_train
from gpt2.cli.compare import compare
from gpt2.cli.demo import demo
from gpt2.cli.doctor import doctor
from gpt2.cli.eval_harness import eval_harness
from gpt2.cli.eval_hellaswag import eval_hellaswag
from gpt2.cli.eval_loss import eval_loss
from gpt2.cli.explain import explain
from gpt2.cli.export import export
from gpt2.cli.import_ import import_
from gpt2.cli.inspect import inspect
from gpt2.cli.launch import is_launched, is_main_process, set_command_line
from gpt2.cli.lens import lens
from gpt2.cli.list_ import list_
from gpt2.cli.misread import DASH, explained
from gpt2.cli.plan import plan
from gpt2.cli.plot import plot
from gpt2.cli.prepare import prepare
from gpt2.cli.prune import prune
from gpt2.cli.report import report
from gpt2.cli.sample import sample
from gpt2.cli.serve import serve
from gpt2.cli.show import show
from gpt2.cli.sweep import sweep
from gpt2.cli.tokenizer_decode import tokenizer_decode
from gpt2.cli.tokenizer_encode import tokenizer_encode
from gpt2.cli.tokenizer_train import tokenizer_train
from gpt2.cli.train import fill_in, train
from gpt2.cli.translate import translated
from gpt2.cli.validate import validate
from gpt2.errors import (
    EXIT_BAD_INPUT,
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    MachineWarning,
    ReportedElsewhere,
    UserError,
    first_line,
)
from gpt2.runlog.console import note
from gpt2.training.setting import OUTPUT, PATH, Bounds, expanded

MIN_COLUMNS, MAX_DIGITS = 20, 4
"""Least width of a terminal that is believed, and the largest number of its digits."""
COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "list": list_,
    "doctor": doctor,
    "prepare": prepare,
    "inspect": inspect,
    "plan": plan,
    "train": train,
    "show": show,
    "compare": compare,
    "prune": prune,
    "sweep": sweep,
    "sample": sample,
    "serve": serve,
    "explain": explain,
    "plot": plot,
    "report": report,
    "lens": lens,
    "export": export,
    "import": import_,
    "validate": validate,
}
GROUPS: dict[str, tuple[str, dict[str, Callable[..., Any]]]] = {
    "eval": ("Measure a model.", {"loss": eval_loss, "hellaswag": eval_hellaswag, "harness": eval_harness}),
    "bench": (
        "Measure the speed of this machine, or of a server.",
        {"train": bench_train, "sample": bench_sample, "data": bench_data, "serve": bench_serve},
    ),
    "tokenizer": (
        "Train a tokenizer, and see what one does to a text.",
        {"train": tokenizer_train, "encode": tokenizer_encode, "decode": tokenizer_decode},
    ),
}
"""Commands with subcommands: a line of help, and the subcommands by name."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "Start": ("demo", "list", "doctor"),
    "Data": ("prepare", "inspect", "tokenizer"),
    "Train": ("plan", "train", "show", "compare", "prune", "sweep"),
    "Look": ("explain", "plot", "report", "lens"),
    "Use": ("sample", "serve", "export", "import"),
    "Check": ("eval", "validate", "bench"),
    "Other": ("completion", "--help", "--version"),
}
"""The commands by task, in the order in which `--help` shows them."""
TAKE_SETTINGS = (("train",), ("sweep",), ("bench", "train"), ("plan",))
"""The commands that take a recipe and the settings of a run."""


def make_app() -> cyclopts.App:
    """Return the command tree."""
    app = cyclopts.App(
        name="gpt2",
        help="The complete GPT-2 toolkit. Begin with gpt2 demo, which trains a small GPT-2 in a few minutes.",
        help_format="plaintext",  # markdown would take a fifth of the time to answer
        version=__version__,
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        config=complete,
        default_parameter=cyclopts.Parameter(
            name_transform=lambda name: name,  # --max_iters, as in Python
            negative_iterable=(),  # a list is empty unless it is given
            allow_repeating=True,  # the last one counts
            show_default=shown,
        ),
    )
    for name, command in {**COMMANDS, "completion": completion}.items():
        app.command(command, name=name, help_format="markdown")
    for name, (line, subcommands) in GROUPS.items():
        group = cyclopts.App(name=name, help=line, help_format="markdown")
        for subname, command in subcommands.items():
            group.command(command, name=subname)
        app.command(group)
    for number, (title, names) in enumerate(SECTIONS.items()):
        section = cyclopts.Group(title, sort_key=number)
        for position, name in enumerate(names):
            if name in app:
                app[name].group, app[name].sort_key = section, position
    return app


def shown(default: object) -> str | None:
    """Return a default as `--help` shows it, several values as they are typed; None where it shows none."""
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or None
    return None if default is None else str(default) or '""'


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], cyclopts.Parameter(help="The shell to write it for.")], /
) -> None:
    """Print a script by which a shell completes the commands and options of gpt2.

    bash reads it from the file `~/.local/share/bash-completion/completions/gpt2`, zsh from a file `_gpt2` in a folder
    of `$fpath`, and fish from `~/.config/fish/completions/gpt2.fish`.
    """
    print(make_app().generate_completion(shell=shell))


def complete(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Read the values of the command line, and add the settings that do not come from flags.

    The library calls this after it has read the command line and before it converts the values. Raises UserError.
    """
    read_values(arguments)
    if commands in TAKE_SETTINGS:
        fill_in(app, commands, arguments)


def without_dashes(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with DASH in place of `-`."""
    return [DASH if word == "-" else word for word in words]


def read_values(arguments: ArgumentCollection) -> None:
    """Give every value its meaning, and check the numbers.

    As a path, `-` is standard input or output, and a `~` at the start is a home folder; as a text, both stay. Raises
    UserError for an empty path, for a number that is not within its bounds, and for a fraction where a whole number
    is needed.
    """
    for argument in arguments:
        argument.tokens = [token.evolve(value=_meant(argument, token)) for token in argument.tokens]
        _check_number(argument)


def _meant(argument: Argument, token: Token) -> str:
    """Return what a value of an argument stands for. Raises UserError for an empty path."""
    kinds = _kinds(argument.field_info.annotation)
    value = "-" if token.value == DASH else token.value
    if PATH not in kinds and OUTPUT not in kinds:
        return value
    if value == "-":
        return "/dev/stdout" if OUTPUT in kinds else "/dev/stdin"
    return expanded(token.keyword or argument.name, value, argument.field_info.default)


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
            value = argument.convert()
            for one in value if isinstance(value, tuple) else (value,):
                bounds.check(argument.field_info.name, one)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. A mistake of the user gives one line instead of a traceback."""
    if sys.stdout is None:  # a process without standard output, such as a daemon
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    columns = os.environ.get("COLUMNS", "80")
    if not columns.isdecimal() or len(columns) > MAX_DIGITS or int(columns) < MIN_COLUMNS:
        del os.environ["COLUMNS"]  # Emacs and CI set 0, with which the layout of help texts never ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks becomes a question mark
    warnings.showwarning = show_warning
    try:
        given = translated(sys.argv[1:] if arguments is None else arguments, note if is_main_process() else ignore)
        set_command_line(given)
        result = make_app()(without_dashes(given))
    except cyclopts.CycloptsError as error:
        fail(explained(error))
    except ReportedElsewhere:
        leave(EXIT_BAD_INPUT)
    except UserError as error:
        fail(str(error), error.status)
    except BrokenPipeError:
        leave(EXIT_BROKEN_PIPE)
    except OSError as error:
        fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
    except KeyboardInterrupt:
        leave(EXIT_INTERRUPTED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"there is not enough memory ({first_line(error)}); give smaller numbers")
    status = result if isinstance(result, int) else 0
    if is_launched():  # Python's normal exit sometimes aborts in threads that PyTorch has not joined
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    leave(status)


def ignore(line: str) -> None:
    """Print nothing, in a process that is not the one that prints."""


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, NumPy or PyTorch raised this error because no memory is left."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from gpt2.device import is_out_of_memory

    return isinstance(error, RuntimeError) and is_out_of_memory(error)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of this program as a line for the user, and any other warning as Python does."""
    is_ours = category is MachineWarning
    note(str(message) if is_ours else warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def fail(line: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print what is wrong in one line and exit. Control characters, which can come from a file, are escaped."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    note(f"gpt2: {printable}")
    leave(status)


def leave(status: int) -> NoReturn:
    """Exit with `status`, even if stdout or stderr can no longer be written to."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # a broken pipe, a full disk, a closed or missing stream
            silence(stream)
    sys.exit(status)


def silence(stream: TextIO) -> None:
    """Redirect a stream that cannot be written to to /dev/null, so that Python's exit does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
