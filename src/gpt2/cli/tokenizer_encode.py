"""`gpt2 tokenizer encode`."""

import json
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DataDirArg, JsonFlag
from gpt2.cli.results import table
from gpt2.training.setting import PATH

NamedTokenizerArg = Annotated[
    str,
    PATH,
    Parameter(help="Tokenizer: gpt2, byte, a dataset, or the file or folder of a tokenizer, a dataset or a model."),
]


def tokenizer_encode(
    text: str = "-",
    /,
    *,
    tokenizer: NamedTokenizerArg = "gpt2",
    parse_special: bool = True,
    table_: Annotated[bool, Parameter(name="--table", negative=())] = False,
    data_dir: DataDirArg = "data",
    json_: JsonFlag = False,
) -> None:
    """Print the token ids of a text.

    Parameters
    ----------
    text
        Text to encode, FILE:path for the text of a file, or - for standard input.
    parse_special
        Encode the text of a special token, such as <|endoftext|>, as that token, as in prompts.
    table_
        Print a line for each token: its position, its id and its text.
    """
    from gpt2.formats.token_table import shown, tokenizer_of
    from gpt2.generation.text import read_prompt

    found = tokenizer_of(tokenizer, data_dir)
    ids = found.encode(read_prompt("FILE:/dev/stdin" if text == "-" else text), parse_special)
    if json_:
        print(json.dumps({"ids": ids, "tokens": [found.decode([token]) for token in ids]}))
    elif table_:
        rows = [(str(position), str(token), shown(found, token)) for position, token in enumerate(ids)]
        print(table(("position", "id", "text"), rows, right=("position", "id")))
    else:
        print(*ids)
