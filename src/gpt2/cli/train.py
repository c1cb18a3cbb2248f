"""`gpt2 train`."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from gpt2.cli.allocator import keep_freed_memory
from gpt2.cli.launch import command_line, is_launched, is_restarted, launch, speaks
from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.console import note
from gpt2.training import recipes
from gpt2.training.config import TrainConfig
from gpt2.training.nanogpt_config import names_a_model

EXIT_STOPPED = 75
"""A signal ended the run, which is saved and can be resumed (sysexits' EX_TEMPFAIL)."""


def train(
    recipe: str | None = None,
    /,
    *,
    nproc: str = "1",
    max_restarts: int = 0,
    ui: Annotated[bool, Parameter(negative=())] = False,
    ui_port: int = 0,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    config: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
) -> int:
    """Train, fine-tune or resume a model.

    A flag goes before the recipe, the recipe before the default. A run that is resumed keeps its settings but
    for the flags, so that `gpt2 train --init_from=resume --out_dir=RUN` needs nothing else. Exits with status 75
    when a signal stopped the run, which is then saved.

    Parameters
    ----------
    recipe
        A built-in name (shakespeare_char, gpt2, …), a TOML file or a nanoGPT config file.
    nproc
        Processes on this machine that train together: a number, or auto for one a GPU. torchrun does the same, and
        more machines.
    max_restarts
        How often these processes go on from the last checkpoint after one of them has died.
    ui
        Serve a page with curves, samples and figures of the run to this machine while it trains.
    ui_port
        Port of that page; 0 is any free one.
    json_
        Print how the run ended as one JSON object.
    """
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line(), 1 if config.deterministic else None, max_restarts)
    if is_restarted() and saved_steps(Path(config.out_dir)):
        config = replace(config, init_from="resume", overwrite=False)
    from gpt2.device import seconds_since_process_start
    from gpt2.training.loop import train as run

    keep_freed_memory()
    with watched(config, ui_port) if ui and speaks() else nullcontext():
        result = run(config, imports=seconds_since_process_start() or 0.0)
    if json_ and speaks():
        print(json.dumps(asdict(result) | {"out_dir": str(result.out_dir)}))
    return EXIT_STOPPED if result.stopped else 0


@contextmanager
def watched(config: TrainConfig, port: int) -> Iterator[None]:
    """The page of the run that now begins is served; where that cannot be, a line says so and the run begins."""
    from gpt2.report.live import served

    with ExitStack() as stack:
        try:
            address = stack.enter_context(served(Path(config.out_dir), TrainConfig().as_dict(), port))
            note(f"watch this run at {address}")
        except UserError as error:
            note(f"training without its page: {error}")
        yield


def fill_in(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the arguments without a flag the settings of the run to be resumed, then the recipe's."""
    named = {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}
    recipe_tokens = next(a for a in arguments if a.field_info.name == "recipe").tokens
    recipe = recipe_tokens[0].value if recipe_tokens else ""
    recipe_settings = recipes.load_recipe(recipe) if recipe else {}

    def value(name: str) -> str:
        tokens = named[name].tokens
        return (
            tokens[0].value if tokens else recipe_settings.get(name, TrainConfig.__dataclass_fields__[name].default)
        )

    out_dir, init_from = value("out_dir"), value("init_from")
    if recipe.endswith(".py") and names_a_model(init_from):
        recipe_settings.pop("gelu", None)  # nanoGPT's default, where a model brings its own
    given = {name for name, argument in named.items() if argument.tokens}
    stored = recipes.run_settings(out_dir) if init_from in ("resume", "auto") else {}
    if stored:
        stored |= {"out_dir": out_dir, "init_from": init_from}
        for name in sorted(recipe_settings.keys() - given - {"init_from", "overwrite"}):
            if recipe_settings[name] != stored.get(name):
                ours = stored.get(name, "unset")
                note(f"the run in {out_dir} keeps {name}={ours}; --{name}={recipe_settings[name]} would change it")
        recipe_settings = {name: value for name, value in recipe_settings.items() if name == "overwrite"}
    for settings, where in ((stored, f"{out_dir}/config.toml"), (recipe_settings, recipe)):
        settings = recipes.without_contradicted(settings, given)
        Dict(settings, source=where, use_commands_as_keys=False)(app, commands, arguments)
