"""`gpt2 prepare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.data.sources import STANDARD_INPUT
from gpt2.errors import UserError
from gpt2.runlog.console import note

if TYPE_CHECKING:
    from gpt2.tokenizers import Tokenizer


def prepare(
    *sources: Annotated[str, Parameter(required=True)],
    out: Path | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    val_fraction: float = 0.1,
    field: str = "text",
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    overwrite: bool = False,
) -> None:
    """Turn text into a dataset of tokens: train.bin, val.bin and dataset.json.

    Parameters
    ----------
    sources
        A corpus by name (shakespeare_char, shakespeare, pystdlib), or files and folders: text, .jsonl, .parquet,
        compressed or not (.gz, .xz, .bz2, .zst); - is standard input.
    out
        Folder to make. Default: data/ and the name of the corpus or of the first source.
    tokenizer
        char, byte, gpt2 (OpenAI's 50,257 tokens), bpe (trained on this text), or one there is already: the folder of
        a model or a dataset, or a tokenizer.json. Default: the corpus's own, else gpt2.
    vocab_size
        Ids of a bpe tokenizer. Default: the corpus's own, else 4096.
    val_fraction
        Share of the text kept for validation.
    field
        Where .jsonl and .parquet have the text of a document.
    from_
        A local copy of a corpus that would be downloaded.
    overwrite
        Replace the dataset already in out.
    """
    from gpt2.data.prepare import TOKENIZERS
    from gpt2.data.prepare import prepare as run

    if out is None and sources[0] == STANDARD_INPUT:
        raise UserError("text from standard input needs a place: give --out")
    folder = out or Path("data") / Path(sources[0]).resolve().name.split(".")[0]
    run(
        *sources,
        out=folder,
        tokenizer=tokenizer if tokenizer is None or tokenizer in TOKENIZERS else existing_tokenizer(tokenizer),
        vocab_size=vocab_size,
        val_fraction=val_fraction,
        given=from_,
        field=field,
        overwrite=overwrite,
        note=note,
    )
    note(f"wrote {folder}; train on it with --dataset={folder}")


def existing_tokenizer(name: str) -> "Tokenizer":
    """The tokenizer of a model, a dataset or a file."""
    from gpt2.data.prepare import TOKENIZERS
    from gpt2.formats.open import named_tokenizer

    if not Path(name).exists():
        raise UserError(f"no tokenizer {name!r}; choose from {', '.join(TOKENIZERS)}, or name a model or a dataset")
    return named_tokenizer(name)
