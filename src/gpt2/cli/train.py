"""`gpt2 train`."""

from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from gpt2.training import recipes
from gpt2.training.config import TrainConfig

EXIT_STOPPED = 75
"""A signal ended the run, which is saved and can be resumed (sysexits' EX_TEMPFAIL)."""


def train(
    recipe: str | None = None,
    /,
    *,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> int:
    """Train, fine-tune or resume a model.

    A flag goes before the recipe, the recipe before the default. With --init_from=resume the settings the
    run has come between the recipe and the defaults, so that `gpt2 train --init_from=resume --out_dir=RUN`
    needs nothing else. Exits with status 75 when a signal stopped the run, which is then saved.

    Parameters
    ----------
    recipe
        A built-in name (shakespeare_char, gpt2, …), a TOML file or a nanoGPT config file.
    """
    from gpt2.training.loop import train as run

    return EXIT_STOPPED if run(config).stopped else 0


def fill_in(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments without a flag the recipe's values, then those of the run to be resumed."""
    named = {argument.name: argument for argument in arguments}
    recipe = next(a for a in arguments if a.field_info.name == "recipe")
    if recipe.tokens:
        where = recipe.tokens[0].value
        _fill(recipes.load_recipe(where), where, app, commands, arguments)

    def value(name: str) -> str:
        tokens = named["--" + name.replace("_", "-")].tokens
        return tokens[0].value if tokens else TrainConfig.__dataclass_fields__[name].default

    stored = Path(value("out_dir")) / "config.toml"
    if value("init_from") in ("resume", "auto") and stored.is_file():
        settings = recipes.parse_toml(stored.read_text(encoding="utf-8"), str(stored))
        _fill(settings, str(stored), app, commands, arguments)


def _fill(
    settings: dict[str, Any],
    where: str,
    app: cyclopts.App,
    commands: tuple[str, ...],
    arguments: ArgumentCollection,
) -> None:
    Dict(settings, source=where, use_commands_as_keys=False)(app, commands, arguments)
