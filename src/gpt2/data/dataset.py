"""Datasets: folders with token files and the `dataset.json` of `prepare`, or token files of other projects."""

import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt2.data import corpora
from gpt2.data.prepare import prepare
from gpt2.data.shards import Shard, Tokens, content_hash, open_shard
from gpt2.data.staging import FORMAT, STAGING
from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.formats.tokenizer_files import DESCRIPTION, read_meta
from gpt2.json_file import JsonObject, read_object
from gpt2.spelling import counted, did_you_mean
from gpt2.tokenizers import Tokenizer, from_json, gpt2_tokenizer, has_ids_of

SPLIT_NAME = re.compile(r"(?:^|(?<=[_.-]))(train|val)(?=[_.-])")
"""Marks the split in a file's name, as in train.bin, fineweb_val_000000.bin or edufineweb_train_000001.npy."""
SUFFIXES = (".bin", ".npy")
IDS_AT_A_TIME = 1 << 22
"""Number of token ids that are searched at a time."""
GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Dataset:
    """A dataset holds the tokens of its splits, and the tokenizer that made them."""

    path: Path
    splits: dict[str, Tokens]
    """`train` and `val`, or one of them."""
    tokenizer: Tokenizer
    fingerprint: dict[str, str]
    """Hash of each split's files as they were prepared, or its length where none is recorded. Under
    `train_content` and `val_content`, a hash of the current ids, for which large splits are sampled."""

    def split(self, name: str, block_size: int) -> Tokens:
        """Return the tokens of `train` or `val`. Raises UserError where they do not fill a block and its targets."""
        if name not in self.splits:
            raise UserError(
                f"{self.path} has no {name} tokens, only {' and '.join(self.splits)}; the split is part of a file's "
                f"name, as in {name}.bin or shard_{name}_000000.npy"
            )
        tokens = self.splits[name]
        if len(tokens) <= block_size:
            raise UserError(
                f"{self.path} has {counted(len(tokens), f'{name} token')}, too few for one block of {block_size} and "
                "its target; use shorter blocks or more text"
            )
        return tokens

    def require_elsewhere(self, out_dir: Path) -> None:
        """Raise UserError where the folder of a run is the folder of this dataset."""
        folder = self.path if self.path.is_dir() else self.path.parent
        if out_dir.exists() and out_dir.samefile(folder):
            raise UserError(f"out_dir={out_dir} is the folder of the dataset; give the run a folder of its own")

    def require_tokenizer(self, tokenizer: Tokenizer, whose: str, model: str = "") -> None:
        """Raise UserError unless all ids of this dataset stand for the same tokens in `tokenizer`.

        whose: the owner of the tokenizer, in words. model: its path or name, if it has one.
        """
        if has_ids_of(tokenizer, self.tokenizer):
            return
        if has_ids_of(self.tokenizer, tokenizer):
            new = [text for text in self.tokenizer.special.ids if text not in tokenizer.special.ids]
            raise self._lacking(new, whose, model)
        remedy = f"with --tokenizer={model}" if model else "with that tokenizer"
        raise UserError(
            f"{self.path} was tokenised with {self.tokenizer.kind} ({self.tokenizer.vocab_size} ids), but "
            f"{whose} uses another {tokenizer.kind} tokenizer; prepare the text again {remedy}"
        )

    def require_known(self, name: str, count: int, tokenizer: Tokenizer, whose: str, model: str = "") -> None:
        """Raise UserError unless the first `count` ids of a split stand for the same tokens in `tokenizer`.

        The dataset's tokenizer may have further special tokens, as long as none of them is among these ids. The other
        arguments are those of `require_tokenizer`.
        """
        if not has_ids_of(self.tokenizer, tokenizer):
            self.require_tokenizer(tokenizer, whose, model)
        if self.tokenizer.vocab_size <= tokenizer.vocab_size:
            return
        for start in range(0, count, IDS_AT_A_TIME):
            ids = self.splits[name][start : min(start + IDS_AT_A_TIME, count)]
            if len(new := ids[ids >= tokenizer.vocab_size]):
                found = {self.tokenizer.special.named(i) or "" for i in set(new.tolist())}
                raise self._lacking(sorted(found), whose, model)

    def _lacking(self, new: list[str], whose: str, model: str) -> UserError:
        """Return the error that a model lacks special tokens of this dataset."""
        return UserError(
            f"{self.path} has special tokens that {whose} lacks ({', '.join(new)}); gpt2 train "
            f"--init_from={model or 'MODEL'} --dataset={self.path}, with a new --out_dir, adds them to the model"
        )

    def require_vocabulary(self, vocab_size: int, whose: str) -> None:
        """Raise UserError where a model with `vocab_size` embedding rows lacks ids of this dataset's tokenizer."""
        if vocab_size < self.tokenizer.vocab_size:
            raise UserError(
                f"{self.path} uses {self.tokenizer.vocab_size} token ids, and {whose} has only {vocab_size} rows for "
                "them; prepare the text with the model's own tokenizer"
            )


def open_dataset(name: str, data_dir: str = "data", note: Callable[[str], None] = lambda line: None) -> Dataset:
    """Open the dataset `name`: a folder, a token file, a glob of token files, or a corpus.

    A corpus is prepared if necessary. A relative name is looked up in the current folder and in `data_dir`. `note`
    receives a line before work that takes time. Raises UserError where there is no such dataset, or it is damaged.
    """
    if (found := find_dataset(name, data_dir)) is not None:
        return found
    note(f"dataset {name} is not prepared yet: preparing it in {Path(data_dir) / name}")
    return _open_folder(prepare(name, out=Path(data_dir) / name, workers=os.cpu_count() or 1, note=note))


def find_dataset(name: str, data_dir: str = "data") -> Dataset | None:
    """Open the dataset `name` like `open_dataset`, but return None for a corpus that is not prepared yet."""
    if not name:
        raise UserError("no dataset given; name a prepared folder or a corpus, for example --dataset=pystdlib")
    name, data_dir = os.path.expanduser(name), os.path.expanduser(data_dir)  # noqa: PTH111
    in_data_dir = Path(data_dir) / name
    for path in (Path(name), in_data_dir):
        if path.is_dir() and (is_dataset(path) or not (in_data_dir.is_dir() and path != in_data_dir)):
            return _open_folder(path)
        if path.is_file():
            return _open_files(path, [path])
        if GLOB.search(name) and (files := sorted(path.parent.glob(path.name))):
            return _open_files(path, files)
    if name not in corpora.CORPORA:
        in_folder = [path.name for path in Path(data_dir).iterdir()] if Path(data_dir).is_dir() else []
        names = f"corpora by name: {', '.join(corpora.CORPORA)}"
        hint = did_you_mean(name, [*corpora.CORPORA, *in_folder], names)
        raise UserError(
            f"no dataset {name!r}: neither a folder or file, nor one in {data_dir}/, nor a corpus; {hint}"
        )
    return None


def is_dataset(folder: Path) -> bool:
    """Return whether a folder holds a dataset; a folder of texts may have the name of the dataset made from them."""
    return (folder / DESCRIPTION).exists() or (folder / STAGING).exists() or bool(_shards(folder))


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and SPLIT_NAME.search(p.name))


def _open_folder(folder: Path) -> Dataset:
    """Open a folder that `prepare` made, or one with shards of another project."""
    described = _described(folder)
    return _open_files(folder, files_of(folder, described.files if described is not None else None))


def files_of(folder: Path, described: Iterable[str] | None) -> list[Path]:
    """Return the token files of a folder. described: their names in its dataset.json; None where there is none.

    Raises UserError for a folder without any, and for one that `prepare` has not finished.
    """
    if described is not None:
        files = [folder / name for name in described]
    elif (folder / STAGING).exists():
        raise UserError(f"{folder} is incomplete: its preparation was interrupted; run the same gpt2 prepare again")
    else:
        files = _shards(folder)
    if not files and saved_steps(folder):
        raise UserError(f"{folder} is a run and no dataset; name the dataset that it was trained on, or another one")
    if not files:
        raise UserError(
            f"{folder} holds no dataset: neither dataset.json, nor files like train.bin, x_val_000000.bin or .npy; "
            "make one with gpt2 prepare"
        )
    return files


def _open_files(path: Path, files: list[Path]) -> Dataset:
    """Open shards. A dataset.json or the file's name determines the split; without either it is `train`."""
    folder = files[0].parent
    described = _described(folder)
    known = described.files if described else {}
    shards = open_shards(files, known)
    if described:
        tokenizer = described.tokenizer
    elif (folder / "meta.pkl").is_file():
        tokenizer = read_meta(folder / "meta.pkl")
    elif foreign := next((s.path for s in itertools.chain(*shards.values()) if s.is_llama3), None):
        raise UserError(f"{foreign} holds tokens of Llama 3; prepare its text for GPT-2 with gpt2 prepare")
    else:
        tokenizer = gpt2_tokenizer()  # which nanoGPT, llm.c and build-nanogpt use
    splits = {name: Tokens(found, tokenizer.vocab_size) for name, found in shards.items()}
    contents = {f"{name}_content": content_hash(tokens) for name, tokens in splits.items()}
    fingerprint = {name: _fingerprint(tokens, known) for name, tokens in splits.items()} | contents
    return Dataset(path, splits, tokenizer, fingerprint)


def open_shards(files: Iterable[Path], known: Mapping[str, "DescribedFile"]) -> dict[str, list[Shard]]:
    """Open token files; return those of each split. known: what dataset.json says about them, by name.

    Raises UserError for a damaged one.
    """
    shards: dict[str, list[Shard]] = {}
    for file in files:
        shard, marks = open_shard(file), SPLIT_NAME.findall(file.name)
        split = known[file.name].split if file.name in known else marks[-1] if marks else "train"
        if file.name in known and shard.count != known[file.name].tokens:
            raise UserError(
                f"{file} has {counted(shard.count, 'token')} where {DESCRIPTION} records {known[file.name].tokens}; "
                "it is damaged: prepare the dataset again"
            )
        shards.setdefault(split, []).append(shard)
    return shards


def _fingerprint(tokens: Tokens, known: Mapping[str, "DescribedFile"]) -> str:
    """Return the SHA-256 of a split's only file, or of the SHA-256s of its files; its length where none is known."""
    hashes = [known[shard.path.name].sha256 for shard in tokens.shards if shard.path.name in known]
    if len(hashes) < len(tokens.shards):
        return f"{len(tokens)} tokens"
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode(errors="replace")).hexdigest()


@dataclass(frozen=True)
class DescribedFile:
    """Describes a file as dataset.json does."""

    split: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """Holds the content of a dataset.json."""

    tokenizer: Tokenizer
    files: dict[str, DescribedFile]
    """Files by name."""


def read_described(folder: Path) -> tuple[JsonObject, dict[str, DescribedFile]] | None:
    """Return the dataset.json of a folder and the files that it lists, by name; None where there is none.

    Raises UserError for a damaged one.
    """
    path = folder / DESCRIPTION
    try:
        about = read_object(path, "prepare the dataset again")
    except FileNotFoundError:
        return None
    if (found := about.text("format")) != FORMAT:
        about.fail(f"has format {found[:80]!r}, not {FORMAT!r}")
    by_split = about.section("files")
    files = {
        file.file_name("name"): DescribedFile(split, file.integer("tokens"), file.text("sha256"))
        for split in ("train", "val")
        if by_split.has(split)
        for file in by_split.sections(split)
    }
    return about, files


def _described(folder: Path) -> Description | None:
    """Return the content of the dataset.json of a folder; None where there is none. Raises UserError."""
    if (found := read_described(folder)) is None:
        return None
    about, files = found
    return Description(from_json(about.section("tokenizer").values), files)
