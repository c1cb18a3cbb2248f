"""`gpt2 prepare`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from gpt2.data.sources import STANDARD_INPUT
from gpt2.errors import UserError
from gpt2.runlog.console import WorkConsole, note

if TYPE_CHECKING:
    from gpt2.tokenizers import Tokenizer


def prepare(
    *sources: Annotated[str, Parameter(required=True)],
    out: Path | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    format: Literal["nanogpt", "llmc", "npy"] = "nanogpt",
    name: str | None = None,
    shard_size: int | None = None,
    val: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    val_fraction: float | None = None,
    val_tokens: int | None = None,
    field: str = "text",
    separator: str | None = None,
    part: str | None = None,
    join: bool = False,
    workers: int | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    overwrite: bool = False,
) -> None:
    """Turn text into a dataset of tokens. Killed and run again, it goes on where it was.

    Parameters
    ----------
    sources
        A corpus by name (shakespeare_char, shakespeare, pystdlib, tinystories, openwebtext, fineweb, fineweb-100B,
        fineweb-edu, fineweb-edu-100B, wikitext-103), or files and folders: text, .jsonl, .parquet, compressed or not
        (.gz, .xz, .bz2, .zst); - is standard input.
    out
        Folder to make. Default: data/ and the name of the corpus or of the first source.
    tokenizer
        char, byte, gpt2 (OpenAI's 50,257 tokens), bpe (trained on this text), or one there is already: the folder of
        a model or a dataset, or a tokenizer.json. Default: the corpus's own, else gpt2.
    vocab_size
        Ids of a bpe tokenizer. Default: the corpus's own, else 4096.
    format
        nanogpt: train.bin and val.bin, end-of-text after each document; llmc: llm.c's .bin shards, and npy:
        build-nanogpt's, end-of-text before it. Training here reads them all.
    name
        What llm.c's and build-nanogpt's file names begin with. Default: the corpus's usual one, else the source's.
    shard_size
        Tokens of a file of llmc or npy; 0 is one file a split. Default: 100,000,000.
    val
        Files and folders of text for validation.
    val_fraction
        Share of the documents for validation, or of a text's characters where documents are few. Default: 0.1.
    val_tokens
        Take the first so many tokens for validation, as llm.c and build-nanogpt do.
    field
        Where .jsonl and .parquet have the text of a document.
    separator
        What ends a document in text files, for example '<|endoftext|>' or '\\n\\n'. Default: the file's end.
    part
        I/N: prepare only the I-th of N parts of the files, as one of N machines; then --join them.
    join
        The sources are the parts, all N of them, to be put together.
    workers
        Processes that tokenise. Default: one a core.
    from_
        A local copy of a corpus that would be downloaded.
    overwrite
        Replace the dataset already in out.
    """
    from gpt2.data.join import join as join_parts
    from gpt2.data.prepare import TOKENIZERS, default_name
    from gpt2.data.prepare import prepare as run

    if out is None and (sources[0] == STANDARD_INPUT or join):
        raise UserError("the dataset needs a place: give --out")
    folder = out.expanduser() if out else Path("data") / default_name(sources[0])
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "name": name,
        "shard_size": shard_size,
        "val_fraction": val_fraction,
        "val_tokens": val_tokens,
    }
    if join:
        given = [
            key for key, value in {**settings, "val": val, "part": part, "from": from_}.items() if value is not None
        ]
        if given or format != "nanogpt":
            raise UserError(f"the parts have their settings; leave --{(given or ['format'])[0]} out with --join")
        join_parts([Path(source) for source in sources], folder, overwrite, note)
    else:
        with WorkConsole("tokens") as console:
            run(
                *sources,
                out=folder,
                tokenizer=tokenizer
                if tokenizer is None or tokenizer in TOKENIZERS
                else existing_tokenizer(tokenizer),
                vocab_size=vocab_size,
                format=format,
                name=name,
                shard_size=shard_size,
                val=val or (),
                val_fraction=val_fraction,
                val_tokens=val_tokens,
                field=field,
                separator=separator.replace("\\n", "\n") if separator else separator,
                part=part_of(part),
                workers=workers or os.cpu_count() or 1,
                given=from_,
                overwrite=overwrite,
                note=console.note,
                progress=console.progress,
            )
    note(f"wrote {folder}; train on it with --dataset={folder}")


def unescaped(separator: str | None) -> str | None:
    """A separator with line ends and tabs as they are typed."""
    for typed, meant in {"\\n": "\n", "\\r": "\r", "\\t": "\t"}.items():
        separator = separator.replace(typed, meant) if separator else separator
    return separator


def part_of(text: str | None) -> tuple[int, int]:
    """`2/4` as (2, 4). Raises UserError."""
    if text is None:
        return 1, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal()):
        raise UserError(f"part is {text!r}; give it as I/N, for example --part=1/4")
    return int(first), int(second)


def existing_tokenizer(name: str) -> "Tokenizer":
    """The tokenizer of a model, a dataset or a file."""
    from gpt2.data.prepare import TOKENIZERS
    from gpt2.formats.open import named_tokenizer

    if not Path(name).exists():
        raise UserError(f"no tokenizer {name!r}; choose from {', '.join(TOKENIZERS)}, or name a model or a dataset")
    return named_tokenizer(name)
