"""`gpt2 train`."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from gpt2.cli.arguments import JsonFlag, NprocArg, RecipeArg, SettingsArg
from gpt2.cli.large import ask_for_corpus, prepare_corpus
from gpt2.cli.launch import (
    command_line,
    is_launched,
    is_main_process,
    is_restarted,
    launch,
)
from gpt2.errors import EXIT_STOPPED, UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.console import note
from gpt2.training import recipes
from gpt2.training.config import TrainConfig
from gpt2.training.nanogpt_config import names_a_model
from gpt2.training.setting import PORT, PROCESSES, RECORDS, within

EXAMPLES = """\
  gpt2 train shakespeare_char_cpu                        # a small character model, a minute on a laptop
  gpt2 train own_text --dataset=mine                     # your own text, after gpt2 prepare notes.txt --out=data/mine
  gpt2 train --init_from=resume --out_dir=out            # go on with a run that was stopped"""
"""What `gpt2 train` can do, for users who give it nothing to train."""


def train(
    recipe: RecipeArg = None,
    /,
    *,
    nproc: NprocArg = "1",
    max_restarts: Annotated[int, PROCESSES, within(0, 10**6)] = 0,
    ui: Annotated[bool, RECORDS, Parameter(negative=())] = False,
    ui_port: Annotated[int, RECORDS, PORT] = 0,
    print_config: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(negative=())] = False,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> int:
    """Train, fine-tune or resume a model.

    A flag overrides the recipe, and the recipe overrides the default. A resumed run keeps its settings except for
    those given as flags, so that `gpt2 train --init_from=resume --out_dir=RUN` needs nothing else. The exit status is
    75 if a signal stopped the run; the run is saved then.

    Parameters
    ----------
    max_restarts
        Maximum number of restarts from the last checkpoint after one of the processes died.
    ui
        Serve a page with the run's curves, samples and figures on this machine during the training.
    ui_port
        Port of that page. 0 takes any free one.
    print_config
        Print all settings as TOML instead of training, those that differ from their defaults first.
    yes
        Download a large corpus that is not prepared yet without asking.
    """
    if print_config:
        return show_settings(config, json_)
    if not is_launched():
        ask_for_corpus(config.dataset, config.data_dir, yes)
    if nproc != "1" and not is_launched():
        prepare_corpus(config.dataset, config.data_dir)
        return launch(nproc, command_line(), threads=1 if config.deterministic else None, max_restarts=max_restarts)
    if recipe is None and not config.dataset and config.init_from == "scratch" and not is_launched():
        note(EXAMPLES)
        raise UserError("no dataset given; name a recipe (gpt2 list recipes), a dataset or a run to resume, as above")
    if is_restarted() and saved_steps(Path(config.out_dir)):
        config = replace(config, init_from="resume", overwrite=False)
    from gpt2.device import keep_freed_memory, seconds_since_process_start
    from gpt2.training.loop import train as run

    keep_freed_memory()
    with watched(config, ui_port) if ui and is_main_process() else nullcontext():
        result = run(config, imports=seconds_since_process_start() or 0.0)
    if json_ and is_main_process():
        print(json.dumps(asdict(result) | {"out_dir": str(result.out_dir)}))
    return EXIT_STOPPED if result.stopped else 0


def show_settings(config: TrainConfig, as_json: bool) -> int:
    """Print the settings of a run, as far as they are known without its device and its data; return status 0."""
    from gpt2.training.filled_in import filled_in

    found = filled_in(config)
    print(
        json.dumps({"settings": found.values, "changed": list(found.changed)}) if as_json else found.toml().rstrip()
    )
    return 0


@contextmanager
def watched(config: TrainConfig, port: int) -> Iterator[None]:
    """Serve the page of a run while it trains. If that is not possible, a line reports it and the run trains."""
    from gpt2.serve.live import served

    with ExitStack() as stack:
        try:
            address = stack.enter_context(served(Path(config.out_dir), TrainConfig().as_dict(), port))
            note(f"watch this run at {address}")
        except UserError as error:
            note(f"training without its page: {error}")
        yield


def fill_in(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the settings without a flag the values of the run to be resumed, else those of the recipe.

    Raises UserError for a recipe that cannot be read.
    """
    flags = {a.name.removeprefix("--"): a.tokens[-1].value for a in arguments if a.tokens}
    recipe = next((a.tokens[0].value for a in arguments if a.field_info.name == "recipe" and a.tokens), "")
    from_recipe = recipes.load_recipe(recipe) if recipe else {}
    defaults = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
    chosen = defaults | from_recipe | flags
    out_dir, init_from = chosen["out_dir"], chosen["init_from"]
    if recipe.endswith(".py") and names_a_model(init_from):
        from_recipe.pop("gelu", None)  # nanoGPT's default; the model has its own
    stored = recipes.run_settings(out_dir) if init_from in ("resume", "auto") else {}
    model = from_recipe.get("init_from", "scratch")
    if init_from == "auto" and not stored and names_a_model(model):
        raise UserError(
            f"--init_from=auto would start from random weights, but {recipe} fine-tunes {model}; leave --init_from "
            "out for the first start, and go on with --init_from=resume"
        )
    if stored:
        stored |= {"out_dir": out_dir, "init_from": init_from}
        report_kept(stored, {name: value for name, value in from_recipe.items() if name not in flags})
        from_recipe = {name: value for name, value in from_recipe.items() if name == "overwrite"}
    for settings, where in ((stored, f"{out_dir}/config.toml"), (from_recipe, recipe)):
        settings = recipes.without_contradicted(settings, flags)
        Dict(settings, source=where, use_commands_as_keys=False)(app, commands, arguments)


def report_kept(stored: dict[str, Any], from_recipe: dict[str, Any]) -> None:
    """Report the settings of the recipe that a resumed run does not take."""
    for name in sorted(from_recipe.keys() - {"init_from", "overwrite"}):
        if from_recipe[name] != stored.get(name):
            kept = stored.get(name, "unset")
            note(f"the run in {stored['out_dir']} keeps {name}={kept}; --{name}={from_recipe[name]} would change it")
