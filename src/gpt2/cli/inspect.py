"""`gpt2 inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.results import results_stream
from gpt2.runlog.console import WorkConsole, note
from gpt2.spelling import counted
from gpt2.training.setting import OUTPUT, PATH

if TYPE_CHECKING:
    from gpt2.data.inspect import DatasetReport


def inspect(
    dataset: Annotated[str, PATH],
    /,
    *,
    html: Annotated[Path | None, OUTPUT] = None,
    data_dir: Annotated[str, PATH] = "data",
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Print what is in a dataset: documents, ids, duplicates, what training and validation share, excerpts.

    Parameters
    ----------
    dataset
        A prepared folder, token files (a folder, file or glob), a name under data_dir, or a corpus.
    html
        Also write one HTML page with charts, which needs no other file.
    data_dir
        Folder of the prepared datasets.
    json_
        Print one JSON object instead of a table.
    """
    from gpt2.data.dataset import open_dataset
    from gpt2.data.inspect import inspect as count
    from gpt2.files import write_text
    from gpt2.reporting.dataset_page import page

    found = open_dataset(dataset, data_dir, note)
    with WorkConsole("tokens") as console:
        report = count(found, console.progress)
    if html is not None:
        write_text(html, page(report))
        note(f"wrote {html}")
    print(json.dumps(report.figures()) if json_ else table(report), file=results_stream(html))


def table(report: "DatasetReport") -> str:
    """Return the report as lines of text."""
    lines = [f"{report.path} · {report.tokenizer} tokenizer, {report.vocab_size:,} ids"]
    for name, split in report.splits.items():
        size = f"{counted(split.tokens, 'token')} in {counted(split.files, 'file')}"
        lines.append(f"\n{name}: {size} ({', '.join(split.formats)})")
        if split.documents is not None:
            spread = " · ".join(f"{key} {value:,.0f}" for key, value in split.tokens_per_document.items())
            lines.append(f"  {counted(split.documents, 'document')}, end-of-text rate {split.eot_rate:.3%}")
            lines.append(f"  tokens per document: {spread}")
        what = "blocks of 64 tokens" if split.documents is None else "documents"
        lines.append(f"  largest id {split.largest_id:,} · {counted(split.unused_ids, 'id')} never used")
        lines.append(f"  {split.duplicates:,} duplicate {what}")
    if report.overlap is not None:
        lines.append(f"\ndocuments or blocks of val that are in train too: {report.overlap:,}")
    for name, split in report.splits.items():
        lines.append(f"\nexcerpts of {name}:")
        lines += [f"  {excerpt!r}" for excerpt in split.excerpts]
    return "\n".join(lines)
