"""`gpt2 tokenizer train`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import OUT, FieldArg, FromArg, JsonFlag, OverwriteFlag
from gpt2.cli.results import results_stream
from gpt2.errors import UserError
from gpt2.runlog.console import note
from gpt2.streams import is_stream
from gpt2.training.setting import OUTPUT, PATH, within

if TYPE_CHECKING:
    from gpt2.data.train_tokenizer import TokenizerReport

FILE = "tokenizer.json"


def tokenizer_train(
    *sources: Annotated[str, PATH, Parameter(required=True)],
    vocab_size: Annotated[int, within(257, 10**7)] = 4096,
    special_tokens: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    out: Annotated[Path, OUTPUT, OUT] = Path(FILE),
    field: FieldArg = "text",
    max_characters: Annotated[int, within(1, 10**15)] = 1_000_000_000,
    from_: FromArg = None,
    overwrite: OverwriteFlag = False,
    json_: JsonFlag = False,
) -> None:
    """Train a byte-pair tokenizer, and compare it with GPT-2's on text that it was not trained on.

    The file can be used by `gpt2 prepare --tokenizer=FILE` and by Hugging Face's tokenizers.

    Parameters
    ----------
    sources
        Text as `gpt2 prepare` takes it: the name of a corpus, files and folders, or - for standard input.
    vocab_size
        Number of ids, including the 256 bytes, end-of-text and the special tokens.
    special_tokens
        Texts that become a single token each in prepared text and in prompts, as in "<|user|>" "<|assistant|>".
    out
        The .json file to write, or an existing folder to write tokenizer.json to.
    max_characters
        Maximum number of characters to read.
    """
    from gpt2.data.train_tokenizer import train_tokenizer
    from gpt2.files import publish
    from gpt2.formats.tokenizer_writer import write_tokenizer_json

    path = output_file(out, overwrite)
    tokenizer, report = train_tokenizer(
        *sources,
        vocab_size=vocab_size,
        specials=special_tokens,
        field=field,
        max_characters=max_characters,
        given=from_,
        note=note,
    )
    with publish(path) as temporary:
        write_tokenizer_json(tokenizer, temporary)
    note(f"wrote {path}; prepare text with --tokenizer={path}")
    figures = {"out": str(path), **report.figures()}
    print(json.dumps(figures) if json_ else table(report), file=results_stream(path))


def output_file(out: Path, overwrite: bool) -> Path:
    """Return the file that `out` stands for. Raises UserError if it cannot be written, before the training."""
    if is_stream(out):
        return out
    path = out / FILE if out.is_dir() else out
    if path.suffix != ".json" or path.name in ("dataset.json", "vocab.json"):
        raise UserError(
            f"--out is {out}, which is neither an existing folder nor the name of a tokenizer's file; give "
            f"--out={path.with_name(FILE) if path.suffix == '.json' else path.with_name(path.name + '.json')}"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for {path.name}; make it, or choose another --out")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists; choose another --out, or --overwrite to replace it")
    return path


def table(report: "TokenizerReport") -> str:
    """Return the report as lines of text."""
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
