"""Reads the settings of a built-in recipe, a TOML file or a nanoGPT config file."""

import json
import shlex
import tomllib
from collections.abc import Container
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from gpt2.errors import UserError, first_line
from gpt2.formats.run_folder import folder_of, read_description, read_saved, saved_steps
from gpt2.spelling import did_you_mean, nearest
from gpt2.training import nanogpt_config
from gpt2.training.config import TrainConfig, checked

BATCH_SETTINGS = ("total_batch_size", "gradient_accumulation_steps")
"""The two settings that determine the batch size of an optimizer step, of which one is enough."""

MAX_CHARACTERS = nanogpt_config.MAX_CHARACTERS
"""Largest length of a recipe."""
MAX_DOTS = 100
"""Largest number of dots in a key. Settings have none."""
MAX_INTEGER = nanogpt_config.MAX_INTEGER
"""Bound of every integer of a recipe."""


def names() -> list[str]:
    """Return the names of the built-in recipes."""
    return sorted(
        f.name.removesuffix(".toml") for f in resources.files("gpt2.recipes").iterdir() if f.name.endswith(".toml")
    )


@dataclass(frozen=True)
class RecipeEntry:
    """Describes a built-in recipe in a list."""

    name: str
    about: str
    """The first comment of its file."""
    out_dir: str
    dataset: str

    def figures(self) -> dict[str, Any]:
        """Return the entry as a JSON object."""
        return vars(self).copy()


def entries() -> list[RecipeEntry]:
    """Return what each built-in recipe is for, in the order of their names."""
    return [entry_of(name) for name in names()]


def entry_of(name: str) -> RecipeEntry:
    """Return what a built-in recipe is for."""
    text = (resources.files("gpt2.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    settings, first = tomllib.loads(text), text.partition("\n")[0]
    known = TrainConfig().as_dict() | settings
    about = first.removeprefix("#").strip() if first.startswith("#") else ""
    return RecipeEntry(name, about, known["out_dir"], known["dataset"])


def load_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings of a recipe: a built-in name, a `.toml` file or a nanoGPT `.py` config file.

    Raises UserError for a recipe that is none of these, cannot be parsed or names an unknown setting.
    """
    if recipe in names():
        text = (resources.files("gpt2.recipes") / f"{recipe}.toml").read_text(encoding="utf-8")
        return parse_toml(text, f"recipe {recipe}")
    path = Path(recipe)
    if not path.is_file():
        if (instead := _instead(recipe)) is not None:
            raise UserError(f"{recipe} is no recipe but {instead}")
        hint = did_you_mean(recipe, names(), f"built-in recipes: {', '.join(names())}")
        raise UserError(f"no recipe {recipe!r}: neither a file nor a built-in name; {hint}")
    if path.suffix not in ("", ".toml", ".py"):
        raise UserError(
            f"{recipe} is no recipe, which is a .toml file or a .py file of nanoGPT; a text becomes a dataset with "
            f"gpt2 prepare {shlex.quote(recipe)}"
        )
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_CHARACTERS + 1)
    if path.suffix == ".py":
        return check_settings(nanogpt_config.read(text, recipe), recipe)
    return parse_toml(text, recipe)


def _instead(recipe: str) -> str | None:
    """Return what a run, dataset or model is that was given in place of a recipe, and where it belongs; else None."""
    from gpt2.data.corpora import CORPORA  # imported here because few command lines need them
    from gpt2.data.dataset import is_dataset

    path, quoted = Path(recipe), shlex.quote(recipe)
    in_data_dir = Path(TrainConfig().data_dir) / recipe
    if path.is_dir() and saved_steps(path):
        return (
            f"a run; continue it with --init_from=resume --out_dir={quoted}, or fine-tune its model with "
            f"--init_from={quoted} and a new --out_dir"
        )
    if recipe in CORPORA or any(is_dataset(folder) for folder in (path, in_data_dir) if folder.is_dir()):
        return f"a dataset; train on it with --dataset={quoted}"
    if any((path / file).is_file() for file in ("config.json", "state.json", "ckpt.pt")):
        return f"a model; fine-tune it with --init_from={quoted}"
    return None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the settings of a flat TOML document. Raises UserError, with `where` as the name of the document."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where} has more than {MAX_CHARACTERS:,} characters, which no recipe has")
    for number, line in enumerate(text.split("\n"), start=1):
        keys = line.split("=")[:-1] + [line] * line.lstrip().startswith("[")
        if any(key.count(".") > MAX_DOTS for key in keys):  # for which tomllib takes quadratic time
            raise UserError(f"{where}, line {number}: a key of more than {MAX_DOTS} components")
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{where} is not valid TOML: its values are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and Python's for an integer of thousands of digits
        raise UserError(f"{where} is not valid TOML: {first_line(error)}") from None
    return check_settings(values, where)


def check_settings(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings `values`, each converted to its type.

    Raises UserError for a name that is not a setting, with the most similar one, and for a value of another type.
    """
    known = TrainConfig.__dataclass_fields__
    result = {}
    for name, value in values.items():
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close}?" if close else "gpt2 train --help lists them"
            raise UserError(f"{where}: no setting {name[:80]!r}; {hint}")
        if isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise UserError(f"{where}: {name} is an integer of more than 64 bits")
        try:
            result[name] = checked(name, value)
        except UserError as error:
            text = str(error)
            text = text if len(text) < 600 else f"{text[:300]} … {text[-200:]}"
            raise UserError(f"{where}: {text}") from None
    return result


def dump_toml(values: dict[str, Any]) -> str:
    """Return a flat TOML document of strings, lists of strings, finite numbers and booleans."""
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    # the only character that JSON strings allow and TOML strings do not
    return "".join(lines).replace("\x7f", "\\u007f")


def run_settings(out_dir: str | Path) -> dict[str, Any]:
    """Return the settings that a run was last trained with; an empty dict where there is nothing to resume.

    They are read from `config.toml`, or from the newest readable checkpoint if that file is missing. Raises UserError
    for a `config.toml` that cannot be read, because somebody may have edited it.
    """
    out_dir = Path(out_dir)
    return read_saved(out_dir, lambda steps: _settings_of(out_dir, steps)) or {}


def _settings_of(out_dir: Path, steps: list[int]) -> dict[str, Any] | None:
    """Return the settings of a run with checkpoints of `steps`; None without checkpoints, or if none can be read."""
    if not steps:
        return None
    path = out_dir / "config.toml"
    try:
        return parse_toml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError, UserError) as error:
        why = str(error) if isinstance(error, UserError) else f"{path} cannot be read ({first_line(error)})"
        raise UserError(
            f"{why}; or delete the file, because the checkpoints contain the run's settings too"
        ) from None
    for step in steps:
        try:
            settings = read_description(folder_of(out_dir, step))["train"]
            return check_settings({k: v for k, v in settings.items() if k != "overwrite"}, str(out_dir))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def resume_config(out_dir: str | Path, **changes: Any) -> TrainConfig:
    """Return the configuration that continues the run in `out_dir`, with `changes` to its settings.

    Example: `gpt2.train(gpt2.resume_config("out", max_iters=4000))`. Raises UserError if there is no run.
    """
    settings = run_settings(out_dir)
    if not settings:
        raise UserError(f"{out_dir} holds no run to resume")
    settings |= {"out_dir": str(out_dir), "init_from": "resume"}
    return TrainConfig(**without_contradicted(settings, changes) | changes)


def without_contradicted(settings: dict[str, Any], given: Container[str]) -> dict[str, Any]:
    """Return `settings` without `BATCH_SETTINGS` if one of these is `given`, because they could contradict it."""
    return {
        name: value
        for name, value in settings.items()
        if name not in BATCH_SETTINGS or not any(setting in given for setting in BATCH_SETTINGS)
    }
