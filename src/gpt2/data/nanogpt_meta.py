"""nanoGPT's `meta.pkl`: the characters of a dataset. A pickle, so it is read by what admits plain values only."""

import io
import pickle
from pathlib import Path
from typing import Any

from gpt2.errors import UserError, first_line
from gpt2.tokenizers import CharTokenizer


def read_meta(path: Path) -> CharTokenizer:
    """The tokenizer in a `meta.pkl`. Raises UserError for any other pickle, of which nothing is executed."""
    try:
        meta = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        characters = "".join(meta["itos"][i] for i in range(meta["vocab_size"]))
        if not len(set(characters)) == len(characters) == meta["vocab_size"]:
            raise ValueError("its entries are not one character each")
        return CharTokenizer(characters)
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} is not the meta.pkl of a nanoGPT character dataset ({first_line(error)})") from None


def meta_bytes(tokenizer: CharTokenizer) -> bytes:
    """The content of a `meta.pkl`."""
    itos = dict(enumerate(tokenizer.characters))
    return pickle.dumps({"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}})


class _PlainUnpickler(pickle.Unpickler):
    """Admits containers, text and numbers; whatever names a class or function is refused unexecuted."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain values are admitted")
