"""`gpt2 show`."""

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DataDirArg, JsonFlag
from gpt2.training.setting import PATH

if TYPE_CHECKING:
    from gpt2.training.show import Shown


def show(
    name: Annotated[str, PATH, Parameter(help="A built-in recipe or a recipe's file, a run folder, or a dataset.")],
    /,
    *,
    data_dir: DataDirArg = "data",
    json_: JsonFlag = False,
) -> None:
    """Show all settings of a recipe or a run, where the run stands, or what a dataset has, and what to do next.

    The output is TOML: the settings that differ from their defaults come first, and it can be used as a recipe.
    `gpt2 train … --print_config` does the same for a recipe with flags.
    """
    from gpt2.training.show import show as find

    found = find(name, data_dir)
    print(json.dumps(found.figures()) if json_ else described(found))


def described(found: "Shown") -> str:
    """Return a description as lines of text: TOML, with everything but the settings in comments."""
    lines = [f"{found.kind} {found.name}", *(f"  {line}" for line in found.lines)]
    comments = "\n".join(f"# {' '.join(line.splitlines())}" for line in lines)
    return comments if found.settings is None else f"{comments}\n\n{found.settings.toml().rstrip()}"
