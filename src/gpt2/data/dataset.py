"""A prepared dataset: a folder with `train.bin`, `val.bin` and `dataset.json`, or one of nanoGPT's."""

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data import corpora, shards
from gpt2.data.nanogpt_meta import read_meta
from gpt2.data.prepare import FORMAT, REPLACEMENT, prepare
from gpt2.errors import UserError
from gpt2.tokenizers import Tokenizer, from_json, gpt2_tokenizer


@dataclass(frozen=True)
class Dataset:
    """Token splits and the tokenizer that made them."""

    path: Path
    splits: dict[str, shards.Tokens]
    tokenizer: Tokenizer
    fingerprint: dict[str, str]
    """SHA-256 of each split's file as it was prepared; its length where that was not recorded."""

    def split(self, name: str, block_size: int) -> shards.Tokens:
        """The tokens of `train` or `val`. Raises UserError where they do not fill one block and its targets."""
        tokens = self.splits[name]
        if len(tokens) <= block_size:
            raise UserError(
                f"{self.path / name}.bin has {len(tokens)} tokens, too few for one block of {block_size} and its "
                "target; use shorter blocks or more text"
            )
        return tokens

    def require_tokenizer(self, description: dict[str, Any], whose: str) -> None:
        """Raise UserError unless a `to_json` description is that of this dataset's tokenizer."""
        if description != self.tokenizer.to_json():
            raise UserError(
                f"{self.path} was tokenised with {self.tokenizer.kind} ({self.tokenizer.vocab_size} ids), but "
                f"{whose} uses another {description['kind']} tokenizer; prepare the text again with that one"
            )

    def require_vocabulary(self, vocab_size: int, whose: str) -> None:
        """Raise UserError where a model with `vocab_size` rows lacks ids of this dataset's tokenizer."""
        if vocab_size < self.tokenizer.vocab_size:
            raise UserError(
                f"{self.path} uses {self.tokenizer.vocab_size} token ids, and {whose} has only {vocab_size} rows for "
                "them; prepare the text with the model's own tokenizer"
            )


def open_dataset(name: str, data_dir: str = "data", note: Callable[[str], None] = lambda line: None) -> Dataset:
    """Open the dataset `name`: a folder, a name under `data_dir`, or a corpus, which is prepared if it must be.

    `note` receives a line when something takes time. Raises UserError for what is no dataset or damaged.
    """
    if not name:
        raise UserError("no dataset given; name a prepared folder or a corpus, for example --dataset=pystdlib")
    for folder in (Path(name), Path(data_dir) / name):
        if folder.is_dir():
            return _open_folder(folder)
    if name not in corpora.CORPORA:
        close = difflib.get_close_matches(name, corpora.CORPORA, n=1)
        hint = f"did you mean {close[0]}?" if close else f"corpora by name: {', '.join(corpora.CORPORA)}"
        raise UserError(f"no dataset {name!r}: neither a folder, nor one in {data_dir}/, nor a corpus; {hint}")
    note(f"dataset {name} is not prepared yet: preparing it in {Path(data_dir) / name}")
    return _open_folder(prepare(name, out=Path(data_dir) / name, note=note))


def _open_folder(folder: Path) -> Dataset:
    description = folder / "dataset.json"
    if description.is_file():
        try:
            value = json.loads(description.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise UserError(f"{description} has format {value['format']!r}, not {FORMAT!r}; prepare it again")
            counts: dict[str, Any] = {split: value["tokens"][split] for split in ("train", "val")}
            fingerprint: dict[str, str] = value["sha256"]
            tokenizer = from_json(value["tokenizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{description} cannot be read ({error}); prepare the dataset again") from None
    elif (folder / REPLACEMENT).exists():
        raise UserError(f"{folder} was being replaced when that was interrupted; prepare the dataset again")
    elif (folder / "train.bin").is_file():
        counts, fingerprint = {}, {}
        meta = folder / "meta.pkl"  # nanoGPT's own rule: the characters in there, else GPT-2's BPE
        tokenizer = read_meta(meta) if meta.is_file() else gpt2_tokenizer()
    else:
        raise UserError(f"{folder} holds no dataset (no dataset.json, no train.bin); make one with gpt2 prepare")
    splits = {}
    for split in ("train", "val"):
        path = folder / f"{split}.bin"
        splits[split] = shards.open_bin(path)
        if counts and len(splits[split]) != counts[split]:
            raise UserError(
                f"{path} has {len(splits[split])} tokens where {description} says {counts[split]}; "
                "it is damaged: prepare the dataset again"
            )
        shards.check_ids(splits[split], tokenizer.vocab_size, path)
        fingerprint.setdefault(split, f"{len(splits[split])} tokens")
    return Dataset(folder, splits, tokenizer, fingerprint)
