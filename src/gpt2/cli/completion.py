"""`gpt2 completion`."""

from collections.abc import Callable
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish"]


def completion_of(app: cyclopts.App) -> Callable[[Shell], None]:
    """Return the command that prints the completion of another one's commands and options."""

    def completion(shell: Annotated[Shell, Parameter(help="The shell to write it for.")], /) -> None:
        """Print a script by which a shell completes the commands and options of gpt2.

        bash reads it from the file `~/.local/share/bash-completion/completions/gpt2`, zsh from a file `_gpt2` in a
        folder of `$fpath`, and fish from `~/.config/fish/completions/gpt2.fish`.
        """
        print(app.generate_completion(prog_name="gpt2", shell=shell))

    return completion
