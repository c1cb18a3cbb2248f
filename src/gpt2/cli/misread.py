"""Explains a command line that cannot be read."""

import cyclopts
from cyclopts.argument import Argument

from gpt2.spelling import nearest

DASH = "\0"
"""Stands for `-`, which the library takes for an option. No word of a command line can contain this character."""

MEANT = {bool: "True or False", int: "a whole number", float: "a number"}
"""What a value of a type must be."""
MOST_WORDS, MOST_SHOWN = 5, 80
"""Largest number of surplus words that are shown, and the largest number of their characters."""


def explained(error: cyclopts.CycloptsError) -> str:
    """Return the line for a command line that the library cannot read. Only similar names are suggested."""
    command = " ".join(["gpt2", *(error.command_chain or ())])
    match error:
        case cyclopts.UnknownOptionError(token=token):
            option = (token.keyword or token.value).partition("=")[0]
            known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
            line = f"Unknown option: {option}."
            close = nearest(option, [name for name in known if name.startswith("--")]) if len(option) > 2 else None
            line += f" Did you mean {close}?" if close else f" {command} --help lists the options."
        case cyclopts.UnknownCommandError(unused_tokens=["help", *_]):
            line = 'Unknown command "help". Give gpt2 --help, or gpt2 COMMAND --help.'
        case cyclopts.UnknownCommandError(unused_tokens=[word, *_], app=app) if app is not None:
            known = [name for name in app if not name.startswith("-")]
            close = nearest(word, known)
            hint = f'Did you mean "{close}"?' if close else f"Available commands: {', '.join(known)}."
            line = f'Unknown command "{word}". {hint}'
        case cyclopts.CoercionError(token=token, target_type=kind) if token is not None and kind in MEANT:
            line = f"{token.keyword or 'a value'} is {token.value!r}; it must be {MEANT[kind]}"
        case cyclopts.UnusedCliTokensError(unused_tokens=[*words]):
            shown = " ".join(repr(word.replace(DASH, "-")[:MOST_SHOWN]) for word in words[:MOST_WORDS])
            count = "argument is" if len(words) == 1 else "arguments are"
            line = f"{len(words)} {count} too many: {shown}; quote a text that has spaces, and see {command} --help"
        case cyclopts.MissingArgumentError(keyword=str(option)):
            line = f"{option} requires an argument."
        case cyclopts.MissingArgumentError(argument=Argument(name=str(name))):
            line = f"{command} needs {name}, which is missing; see {command} --help"
        case _:
            line = str(error)
    return " ".join(line.replace(DASH, "-").split())
