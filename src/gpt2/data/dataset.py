"""A prepared dataset: a folder with `train.bin`, `val.bin` and `dataset.json`, or one of nanoGPT's."""

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data import corpora
from gpt2.data.nanogpt_meta import read_meta
from gpt2.data.prepare import FORMAT, REPLACEMENT, prepare
from gpt2.data.shards import Shard, Tokens, check_ids, open_shard
from gpt2.errors import UserError
from gpt2.tokenizers import Tokenizer, from_json, gpt2_tokenizer

SPLIT_NAME = re.compile(r"(?:^|[_.-])(train|val)[_.-]")
"""How every project marks a file's split: train.bin, fineweb_val_000000.bin, edufineweb_train_000001.npy."""
SUFFIXES = (".bin", ".npy")
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Dataset:
    """Token splits and the tokenizer that made them."""

    path: Path
    splits: dict[str, Tokens]
    """`train` and `val`, or one of them."""
    tokenizer: Tokenizer
    fingerprint: dict[str, str]
    """SHA-256 of each split's file as it was prepared; its length where that was not recorded."""

    def split(self, name: str, block_size: int) -> Tokens:
        """The tokens of `train` or `val`. Raises UserError where they do not fill one block and its targets."""
        if name not in self.splits:
            raise UserError(
                f"{self.path} has no {name} tokens, only {' and '.join(self.splits)}; a file's name says its split, "
                f"as in {name}.bin or shard_{name}_000000.npy"
            )
        tokens = self.splits[name]
        if len(tokens) <= block_size:
            raise UserError(
                f"{self.path} has {len(tokens)} {name} tokens, too few for one block of {block_size} and its "
                "target; use shorter blocks or more text"
            )
        return tokens

    def require_tokenizer(self, description: dict[str, Any], whose: str) -> None:
        """Raise UserError unless a `to_json` description is that of this dataset's tokenizer."""
        if description != self.tokenizer.to_json():
            raise UserError(
                f"{self.path} was tokenised with {self.tokenizer.kind} ({self.tokenizer.vocab_size} ids), but "
                f"{whose} uses another {description['kind']} tokenizer; prepare the text again with --tokenizer=MODEL"
            )

    def require_vocabulary(self, vocab_size: int, whose: str) -> None:
        """Raise UserError where a model with `vocab_size` rows lacks ids of this dataset's tokenizer."""
        if vocab_size < self.tokenizer.vocab_size:
            raise UserError(
                f"{self.path} uses {self.tokenizer.vocab_size} token ids, and {whose} has only {vocab_size} rows for "
                "them; prepare the text with the model's own tokenizer"
            )


def open_dataset(name: str, data_dir: str = "data", note: Callable[[str], None] = lambda line: None) -> Dataset:
    """Open the dataset `name`: a folder, a token file, a glob of them, or a corpus, which is prepared if it must be.

    A relative name is looked for here and under `data_dir`. `note` receives a line when something takes time. Raises
    UserError for what is no dataset or damaged.
    """
    if not name:
        raise UserError("no dataset given; name a prepared folder or a corpus, for example --dataset=pystdlib")
    for path in (Path(name), Path(data_dir) / name):
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_files(path, [path])
        if GLOB.search(name) and (files := sorted(path.parent.glob(path.name))):
            return _open_files(path, files)
    if name not in corpora.CORPORA:
        close = difflib.get_close_matches(name, corpora.CORPORA, n=1)
        hint = f"did you mean {close[0]}?" if close else f"corpora by name: {', '.join(corpora.CORPORA)}"
        raise UserError(
            f"no dataset {name!r}: neither a folder or file, nor one in {data_dir}/, nor a corpus; {hint}"
        )
    note(f"dataset {name} is not prepared yet: preparing it in {Path(data_dir) / name}")
    return _open_folder(prepare(name, out=Path(data_dir) / name, note=note))


def _open_folder(folder: Path) -> Dataset:
    """A folder that `prepare` made, or one with shards of another project's."""
    if (folder / "dataset.json").is_file():
        files = [folder / f"{split}.bin" for split in ("train", "val")]
    elif (folder / REPLACEMENT).exists():
        raise UserError(f"{folder} was being replaced when that was interrupted; prepare the dataset again")
    else:
        files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and SPLIT_NAME.search(p.name))
    if not files:
        raise UserError(
            f"{folder} holds no dataset: neither dataset.json, nor files like train.bin, x_val_000000.bin or .npy; "
            "make one with gpt2 prepare"
        )
    return _open_files(folder, files)


def _open_files(path: Path, files: list[Path]) -> Dataset:
    """Shards whose names say their split; a file that says none is for training."""
    folder = files[0].parent
    shards: dict[str, list[Shard]] = {}
    for file in files:
        found = SPLIT_NAME.search(file.name)
        shards.setdefault(found[1] if found else "train", []).append(open_shard(file))
    splits = {name: Tokens(found) for name, found in shards.items()}
    fingerprint = {name: f"{len(tokens)} tokens" for name, tokens in splits.items()}
    description = folder / "dataset.json"
    if description.is_file():
        tokenizer, counts, hashes = _described(description)
        for name, tokens in splits.items():
            if len(tokens) != counts[name]:
                raise UserError(
                    f"{folder / name}.bin has {len(tokens)} tokens where {description} says {counts[name]}; "
                    "it is damaged: prepare the dataset again"
                )
        fingerprint |= hashes
    elif (folder / "meta.pkl").is_file():
        tokenizer = read_meta(folder / "meta.pkl")
    elif foreign := next((s.path for tokens in splits.values() for s in tokens.shards if s.is_llama3), None):
        raise UserError(f"{foreign} holds tokens of Llama 3; prepare its text for GPT-2 with gpt2 prepare")
    else:
        tokenizer = gpt2_tokenizer()  # as nanoGPT, llm.c and build-nanogpt have it
    for tokens in splits.values():
        check_ids(tokens, tokenizer.vocab_size)
    return Dataset(path, splits, tokenizer, fingerprint)


def _described(path: Path) -> tuple[Tokenizer, dict[str, int], dict[str, str]]:
    """Tokenizer, tokens and SHA-256 of each split, from a dataset.json. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise UserError(f"{path} has format {value['format']!r}, not {FORMAT!r}; prepare it again")
        counts = {split: int(value["tokens"][split]) for split in ("train", "val")}
        return from_json(value["tokenizer"]), counts, dict(value["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); prepare the dataset again") from None
