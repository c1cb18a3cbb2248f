"""`gpt2 tokenizer decode`."""

import json
import sys

from gpt2.cli.arguments import DataDirArg, JsonFlag
from gpt2.cli.tokenizer_encode import NamedTokenizerArg


def tokenizer_decode(
    *ids: str, tokenizer: NamedTokenizerArg = "gpt2", data_dir: DataDirArg = "data", json_: JsonFlag = False
) -> None:
    """Print the text of token ids, byte for byte.

    Parameters
    ----------
    ids
        Ids, separated by spaces or commas, or - for standard input.
    """
    from gpt2.formats.token_table import parse_ids, tokenizer_of
    from gpt2.generation.text import read_prompt

    found = tokenizer_of(tokenizer, data_dir)
    given = parse_ids(read_prompt("FILE:/dev/stdin") if ids in ((), ("-",)) else " ".join(ids), found)
    content = found.decode_bytes(given)
    if json_:
        tokens = [found.decode([token]) for token in given]
        print(json.dumps({"text": content.decode(errors="replace"), "ids": given, "tokens": tokens}))
        return
    sys.stdout.buffer.write(content)
    if sys.stdout.isatty() and not content.endswith(b"\n"):
        print()
