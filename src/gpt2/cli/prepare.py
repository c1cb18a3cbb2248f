"""`gpt2 prepare`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import OUT, FieldArg, FromArg, OverwriteFlag
from gpt2.cli.launch import LONGEST_NUMBER
from gpt2.errors import UserError
from gpt2.runlog.console import WorkConsole, note
from gpt2.spelling import did_you_mean
from gpt2.training.setting import OUTPUT, PATH, TOKENS, within

if TYPE_CHECKING:
    from gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class Options:
    """The options of `gpt2 prepare`."""

    out: Annotated[Path | None, OUTPUT, OUT] = None
    """Folder of the dataset to write. Default: data/ and the name of the corpus or of the first source."""
    tokenizer: Annotated[str | None, PATH] = None
    """`char`, `byte`, `gpt2` (OpenAI's 50,257 tokens), `bpe` (trained on this text), or an existing tokenizer: the
    file or folder of a model or a dataset, or a tokenizer.json. Default: that of the corpus, else gpt2."""
    vocab_size: Annotated[int | None, within(257, 10**7)] = None
    """Number of ids of a bpe tokenizer. Default: that of the corpus, else 4096."""
    format: Literal["nanogpt", "llmc", "npy"] = "nanogpt"
    """Format of the token files. `nanogpt`: train.bin and val.bin, with end-of-text after each document. `llmc`:
    llm.c's .bin shards, and `npy`: build-nanogpt's .npy shards, with end-of-text before each document. `gpt2 train`
    reads all of them."""
    name: str | None = None
    """Start of the file names of llmc and npy shards. Default: the usual name of the corpus, else that of the
    source."""
    shard_size: Annotated[int | None, TOKENS] = None
    """Number of tokens in a shard of llmc or npy; 0 writes one file per split. Default: 100,000,000."""
    val: Annotated[list[str] | None, PATH, Parameter(consume_multiple=True)] = None
    """Files and folders of text for the validation split. Default: a part of the sources."""
    val_fraction: float | None = None
    """Fraction of the documents for the validation split, or of the characters of each if there are only a few
    documents. Default: 0.1."""
    val_tokens: Annotated[int | None, TOKENS] = None
    """Use this number of tokens, from the start of the text, for the validation split, as llm.c and build-nanogpt
    do."""
    field: FieldArg = "text"
    separator: str | None = None
    """Text that ends a document in text files, for example '<|endoftext|>' or '\\\\n\\\\n'. It stays in the text,
    except for <|endoftext|>. Default: the end of the file."""
    parse_special: bool | None = None
    """Turn the text of a special token, such as <|user|>, into that token. Default: only for a tokenizer that has
    other special tokens than <|endoftext|>."""
    chat: bool = False
    """The rows are conversations: a list of messages in `--field`, by default `messages`, each with a role (system,
    user, assistant) and a content. Each speaker begins with a special token, such as <|user|>, which the tokenizer
    (gpt2, bpe or an existing BPE) gets if it lacks it."""
    part: str | None = None
    """I/N: prepare only partition I of N partitions of the files, for example on one of N machines. `--join` puts the
    partitions together."""
    join: bool = False
    """Take all N partitions as the sources and put them together."""
    workers: Annotated[int | None, within(1, 1024)] = None
    """Number of processes that tokenise. Default: one per core."""
    from_: FromArg = None
    overwrite: OverwriteFlag = False


def prepare(
    *sources: Annotated[str, PATH, Parameter(required=True)],
    options: Annotated[Options, Parameter(name="*")] = Options(),
) -> None:
    """Turn text into a dataset of tokens. After an interruption, the same command continues where it stopped.

    Parameters
    ----------
    sources
        The name of a corpus (shakespeare_char, shakespeare, pystdlib, tinystories, openwebtext, fineweb,
        fineweb-100B, fineweb-edu, fineweb-edu-100B, wikitext-103), or files and folders with text, .jsonl or
        .parquet, compressed (.gz, .xz, .bz2, .zst) or not, or .json, .csv and .tsv files. - is standard input.
    """
    from gpt2.data.inputs import default_name
    from gpt2.data.join import join
    from gpt2.data.sources import STANDARD_INPUT

    if options.out is None and (sources[0] == STANDARD_INPUT or options.join):
        raise UserError("the dataset needs a folder: give --out")
    folder = options.out if options.out else Path("data") / default_name(sources[0])
    if options.join:
        refuse_settings_of_partitions(options)
        join([Path(source) for source in sources], folder, options.overwrite, note)
    else:
        tokenise(sources, folder, options)
    note(f"wrote {folder}; train on it with --dataset={folder}")


def refuse_settings_of_partitions(options: Options) -> None:
    """Raise UserError for a setting that the partitions to be joined already have."""
    names = ("tokenizer", "vocab_size", "name", "shard_size", "val_fraction", "val_tokens", "val", "part", "from_")
    given = [name.rstrip("_") for name in names if getattr(options, name) is not None]
    if options.format != "nanogpt":
        given.append("format")
    if given:
        raise UserError(f"the partitions already have their settings; leave --{given[0]} out with --join")


def tokenise(sources: tuple[str, ...], folder: Path, options: Options) -> None:
    """Prepare the sources as the options say, with a progress bar."""
    from gpt2.data.prepare import prepare as run

    with WorkConsole("tokens") as console:
        run(
            *sources,
            out=folder,
            tokenizer=chosen_tokenizer(options.tokenizer),
            vocab_size=options.vocab_size,
            format=options.format,
            name=options.name,
            shard_size=options.shard_size,
            val=options.val or (),
            val_fraction=options.val_fraction,
            val_tokens=options.val_tokens,
            field=options.field,
            separator=unescaped(options.separator),
            parse_special=options.parse_special,
            chat=options.chat,
            part=parsed_part(options.part),
            workers=options.workers or os.cpu_count() or 1,
            given=options.from_,
            overwrite=options.overwrite,
            note=console.note,
            progress=console.progress,
        )


def unescaped(separator: str | None) -> str | None:
    """Return a separator with typed line feeds, carriage returns and tabs as characters."""
    for typed, meant in {"\\n": "\n", "\\r": "\r", "\\t": "\t"}.items():
        separator = separator.replace(typed, meant) if separator else separator
    return separator


def parsed_part(text: str | None) -> tuple[int, int]:
    """Return `2/4` as (2, 4). Raises UserError."""
    if text is None:
        return 1, 1
    first, _, second = text.partition("/")
    if not all(number.isdecimal() and len(number) <= LONGEST_NUMBER for number in (first, second)):
        raise UserError(f"part is {text!r}; give it as I/N, for example --part=1/4")
    return int(first), int(second)


def chosen_tokenizer(name: str | None) -> "str | Tokenizer | None":
    """Return the name of a tokenizer to make, or the existing tokenizer that `name` stands for. Raises UserError."""
    from gpt2.data.tokenizer_choice import TOKENIZERS

    if name is None or name in TOKENIZERS:
        return name
    if not Path(name).exists():
        names = f"choose from {', '.join(TOKENIZERS)}, or name the file or folder of a model or a dataset"
        raise UserError(f"no tokenizer {name!r}; {did_you_mean(name, TOKENIZERS, names)}")
    from gpt2.formats.open import named_tokenizer  # here, because it imports PyTorch, which takes two seconds

    return named_tokenizer(name)
