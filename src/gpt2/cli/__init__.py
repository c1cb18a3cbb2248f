"""The `gpt2` command. What is heavy is imported inside the commands, so that help answers at once."""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, TextIO

import cyclopts
from cyclopts.argument import ArgumentCollection

from gpt2 import __version__
from gpt2.cli.bench import app as bench_app
from gpt2.cli.convert import export, import_, validate
from gpt2.cli.demo import demo
from gpt2.cli.evaluate import app as eval_app
from gpt2.cli.inspect import inspect
from gpt2.cli.launch import is_launched
from gpt2.cli.plan import plan
from gpt2.cli.plot import plot
from gpt2.cli.prepare import prepare
from gpt2.cli.report import report
from gpt2.cli.sample import sample
from gpt2.cli.tokenizer import app as tokenizer_app
from gpt2.cli.train import fill_in, train
from gpt2.data.sources import STANDARD_INPUT
from gpt2.errors import ReportedElsewhere, UserError
from gpt2.runlog.console import note

EXIT_BAD_INPUT = 2
EXIT_BROKEN_PIPE = 141


def make_app() -> cyclopts.App:
    """The command tree."""
    app = cyclopts.App(
        name="gpt2",
        help="The complete GPT-2 toolkit.",
        help_format="plaintext",  # markdown would take a fifth of the time to answer
        version=__version__,
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        config=complete,
        default_parameter=cyclopts.Parameter(negative_iterable=()),  # a list is left empty by leaving it out
    )
    for command in (demo, prepare, inspect, plan, train, sample, plot, report, export, validate):
        app.command(command, help_format="markdown")
    app.command(import_, name="import", help_format="markdown")
    app.command(eval_app)
    app.command(bench_app)
    app.command(tokenizer_app)
    return app


def complete(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Between reading the command line and converting it: refuse fractions, bring in settings from elsewhere."""
    for argument in arguments:
        if argument.hint in (int, int | None):
            for token in argument.tokens:
                if "." in token.value:  # the library would round it
                    raise UserError(f"{token.keyword} is {token.value}; it must be a whole number")
    if commands in (("train",), ("bench", "train"), ("plan",)):
        fill_in(app, commands, arguments)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; never shows the user a traceback for an error of theirs."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
    try:
        given = sys.argv[1:] if arguments is None else arguments
        result = make_app()([STANDARD_INPUT if a == "-" else a for a in given])  # the library takes - for an option
    except cyclopts.CycloptsError as error:
        fail(" ".join(str(error).split()))
    except ReportedElsewhere:
        leave(EXIT_BAD_INPUT)
    except UserError as error:
        fail(str(error), error.status)
    except BrokenPipeError:
        leave(EXIT_BROKEN_PIPE)
    except OSError as error:
        fail(": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error))
    except KeyboardInterrupt:
        leave(130)
    status = result if isinstance(result, int) else 0
    if is_launched():  # Python's long way out now and then aborts in threads that PyTorch has not joined
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    leave(status)


def fail(line: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print what is wrong in one line and exit. Control characters that a file brought in are escaped."""
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    note(f"gpt2: {printable}")
    leave(status)


def leave(status: int) -> NoReturn:
    """Exit with `status`, also where nobody reads stdout or stderr any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # a broken pipe, a full disk, a closed or missing stream
            silence(stream)
    sys.exit(status)


def silence(stream: TextIO) -> None:
    """Connect a stream that cannot be written to with /dev/null, so that Python's exit does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
