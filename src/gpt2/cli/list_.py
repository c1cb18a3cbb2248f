"""`gpt2 list`."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag
from gpt2.cli.results import table
from gpt2.errors import UserError
from gpt2.spelling import did_you_mean
from gpt2.training.setting import PATH

if TYPE_CHECKING:
    from gpt2.data.listing import DatasetEntry
    from gpt2.reporting.listing import RunEntry
    from gpt2.training.recipes import RecipeEntry

KINDS = ("recipes", "datasets", "runs")
UNKNOWN = "–"


def list_(
    kind: Annotated[
        Literal["all", "recipes", "datasets", "runs"], Parameter(help="recipes, datasets, runs, or all of them.")
    ] = "all",
    /,
    *folders: Path,
    data_dir: Annotated[str, PATH] = "data",
    json_: JsonFlag = False,
) -> None:
    """List the recipes, the prepared datasets and the runs that there are, with their sizes and states.

    Damaged ones are listed with what is wrong.

    Parameters
    ----------
    folders
        Folders in which datasets and runs are looked for. Default: data_dir for datasets, and the current folder for
        runs.
    data_dir
        Folder of the prepared datasets.
    """
    kinds = KINDS if kind == "all" else (kind,)
    for folder in folders:
        if not folder.is_dir():
            hint = did_you_mean(str(folder), (), "name folders that hold datasets or runs")
            raise UserError(f"there is no folder {folder}; {hint}")
    found = {name: entries(name, folders, data_dir) for name in kinds}
    if json_:
        figures = {name: [entry.figures() for entry in listed] for name, listed in found.items()}
        print(json.dumps(figures))
        return
    texts = {"recipes": recipes_text, "datasets": datasets_text, "runs": runs_text}
    print("\n\n".join(texts[name](listed) for name, listed in found.items()))


def entries(kind: str, folders: tuple[Path, ...], data_dir: str) -> list:
    """Return what a list of one kind holds."""
    if kind == "recipes":
        from gpt2.training.recipes import entries as recipe_entries

        return recipe_entries()
    if kind == "datasets":
        from gpt2.data.listing import datasets_in

        return datasets_in(folders or [Path(data_dir)])
    from gpt2.reporting.listing import runs_in

    return runs_in(folders or [Path()])


def recipes_text(found: "list[RecipeEntry]") -> str:
    """Return a table of recipes."""
    rows = [(r.name, r.dataset or UNKNOWN, r.out_dir, r.about) for r in found]
    return table(("recipe", "dataset", "out_dir", "what it trains"), rows)


def datasets_text(found: "list[DatasetEntry]") -> str:
    """Return a table of datasets."""
    from gpt2.reporting.style import file_size

    if not found:
        return "no datasets; make one with gpt2 prepare shakespeare_char, or of your own text"
    rows = [
        (
            d.name,
            *(count(value) for value in (d.train, d.val)),
            f"{d.tokenizer} ({count(d.vocab_size)})" if d.tokenizer else UNKNOWN,
            file_size(d.bytes) if d.bytes else UNKNOWN,
            d.problem or "",
        )
        for d in found
    ]
    header = ("dataset", "train tokens", "val tokens", "tokenizer (ids)", "size", "")
    return table(header, rows, right=("train tokens", "val tokens", "size"))


def runs_text(found: "list[RunEntry]") -> str:
    """Return a table of runs."""
    from gpt2.reporting.style import file_size

    if not found:
        return "no runs; make one with gpt2 demo, or with gpt2 train RECIPE"
    rows = [
        (
            str(r.path),
            r.state,
            f"{count(r.step)}/{count(r.last_step)}",
            loss(r.train_loss),
            loss(r.best_val_loss),
            file_size(r.bytes),
            ago(time.time() - r.newest) if r.newest is not None else UNKNOWN,
            r.problem or "",
        )
        for r in found
    ]
    header = ("run", "state", "step", "step loss", "best val", "size", "age", "")
    return table(header, rows, right=("step", "step loss", "best val", "size", "age"))


def count(value: int | None) -> str:
    """Return a number with separators."""
    return UNKNOWN if value is None else f"{value:,}"


def loss(value: float | None) -> str:
    """Return a loss with four digits after the point."""
    return UNKNOWN if value is None else f"{value:.4f}"


def ago(seconds: float) -> str:
    """Return how long ago something was, in its largest unit, such as `5 min`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
