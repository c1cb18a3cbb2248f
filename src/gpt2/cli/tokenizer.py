"""`gpt2 tokenizer`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from gpt2.cli.results import results_stream
from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.streams import is_stream

if TYPE_CHECKING:
    from gpt2.data.train_tokenizer import TokenizerReport

app = cyclopts.App(name="tokenizer", help="Make a tokenizer.", help_format="markdown")
FILE = "tokenizer.json"


@app.command
def train(
    *sources: Annotated[str, Parameter(required=True)],
    vocab_size: int = 4096,
    special_tokens: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    out: Path = Path(FILE),
    field: str = "text",
    max_characters: int = 1_000_000_000,
    overwrite: bool = False,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Learn a byte-pair vocabulary from text, and compare it with GPT-2's on text kept out of training.

    `gpt2 prepare --tokenizer=FILE` takes what it writes, and so does Hugging Face's tokenizers.

    Parameters
    ----------
    sources
        What `gpt2 prepare` takes: a corpus by name, files and folders, - for standard input.
    vocab_size
        Ids, with the 256 bytes, end-of-text and the special tokens among them.
    special_tokens
        Texts that are one token each where special tokens are asked for, as in "<|user|>" "<|assistant|>"; all up to
        the next option.
    out
        The .json file to make, or the folder to make tokenizer.json in.
    field
        Where .jsonl and .parquet have the text of a document.
    max_characters
        Read no more than this.
    overwrite
        Replace the file already there.
    json_
        Print one JSON object instead of a table.
    """
    from gpt2.data.train_tokenizer import train_tokenizer
    from gpt2.files import publish
    from gpt2.formats.tokenizer_writer import write_tokenizer_json

    path = place(out, overwrite)
    tokenizer, report = train_tokenizer(
        *sources,
        vocab_size=vocab_size,
        specials=special_tokens,
        field=field,
        max_characters=max_characters,
        note=note,
    )
    with publish(path) as temporary:
        write_tokenizer_json(tokenizer, temporary)
    note(f"wrote {path}; prepare text with --tokenizer={path}")
    found = json.dumps({"out": str(path), **report.figures()}) if json_ else table(report)
    print(found, file=results_stream(path))


def place(out: Path, overwrite: bool) -> Path:
    """The file that `out` means. Raises UserError where it cannot be made, before anything is trained."""
    if is_stream(out):
        return out
    path = out / FILE if out.is_dir() else out
    if path.suffix != ".json" or path.name in ("dataset.json", "vocab.json"):
        raise UserError(
            f"--out is {out}, no folder there is; a tokenizer's file is named NAME.json, for example {FILE}"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}; make it, or choose another --out")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; choose another --out, or --overwrite to replace it")
    return path


def table(report: "TokenizerReport") -> str:
    """The report in lines of text."""
    rows = [
        ("ids", f"{report.ids:,}"),
        ("read", f"{report.characters:,} characters"),
        ("kept out of training", f"{report.measured_bytes:,} bytes measured"),
        ("bytes per token", f"{report.bytes_per_token:.3f}"),
    ]
    if report.gpt2_bytes_per_token:
        rows.append(("  GPT-2's tokenizer", f"{report.gpt2_bytes_per_token:.3f}"))
        rows.append(("  ratio", f"{report.ratio:.3f}"))
    rows.append(("longest tokens", " ".join(map(repr, report.longest_tokens))))
    rows.append(("seconds", f"{report.seconds:.1f}"))
    return "\n".join(f"{name:<22}{value}" for name, value in rows)
