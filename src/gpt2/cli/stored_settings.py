"""Settings that do not come from flags: those of a recipe, and those of a run that is resumed."""

from typing import Any

import cyclopts
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict

from gpt2.runlog.console import note
from gpt2.training import recipes
from gpt2.training.config import TrainConfig
from gpt2.training.nanogpt_config import names_a_model


def fill_in(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give the settings without a flag the values of the run to be resumed, else those of the recipe.

    Raises UserError for a recipe that cannot be read.
    """
    flags = {a.name.removeprefix("--").replace("-", "_"): a.tokens[0].value for a in arguments if a.tokens}
    recipe = next((a.tokens[0].value for a in arguments if a.field_info.name == "recipe" and a.tokens), "")
    from_recipe = recipes.load_recipe(recipe) if recipe else {}
    defaults = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
    chosen = defaults | from_recipe | flags
    out_dir, init_from = chosen["out_dir"], chosen["init_from"]
    if recipe.endswith(".py") and names_a_model(init_from):
        from_recipe.pop("gelu", None)  # nanoGPT's default; the model has its own
    stored = recipes.run_settings(out_dir) if init_from in ("resume", "auto") else {}
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
