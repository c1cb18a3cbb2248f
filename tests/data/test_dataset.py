import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_shards import save_bare, save_llama3, save_llmc, save_npy

from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


def truncate(folder: Path) -> None:
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-10])


def add_byte(folder: Path) -> None:
    (folder / "val.bin").write_bytes((folder / "val.bin").read_bytes() + b"x")


def raise_id(folder: Path) -> None:
    tokens = np.fromfile(folder / "train.bin", dtype="<u2")
    tokens[100] = 60_000
    tokens.tofile(folder / "train.bin")


def llmc_header(folder: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:2] = 20240520, 1
    (folder / "train.bin").write_bytes(header.tobytes())


DAMAGES = {
    "missing": lambda folder: (folder / "val.bin").unlink(),
    "empty": lambda folder: (folder / "val.bin").write_bytes(b""),
    "says": truncate,
    "odd number of bytes": add_byte,
    "token id 60000": raise_id,
    "header says 0 tokens": llmc_header,
    "cannot be read": lambda folder: (folder / "dataset.json").write_text("{"),
    "dataset.json has no format": lambda folder: (folder / "dataset.json").write_text(json.dumps({"tokens": 3})),
    "holds no dataset": lambda folder: [p.unlink() for p in folder.iterdir()],
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(copy: Path, message: str) -> None:
    DAMAGES[message](copy)
    with pytest.raises(UserError, match=message):
        open_dataset(str(copy))


def test_names_are_looked_up_below_data_dir(copy: Path) -> None:
    assert open_dataset("copy", data_dir=str(copy.parent)).path == copy


@pytest.mark.parametrize(
    ("name", "hint"),
    [("shakespear", "did you mean shakespeare"), ("qqq", "pystdlib"), ("", "no dataset given")],
)
def test_unknown_datasets_are_explained(name: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=hint):
        open_dataset(name, data_dir=str(tmp_path))


def test_blocks_longer_than_the_split_are_refused(dataset: Path) -> None:
    data = open_dataset(str(dataset))
    length = len(data.splits["val"])
    assert data.split("val", length - 1) is data.splits["val"]
    with pytest.raises(UserError, match="too few for one block"):
        data.split("val", length)


@pytest.mark.parametrize("save", [save_bare, save_llmc, save_npy])
def test_each_projects_folder_is_read(save, gpt2_vocabulary: None, tmp_path: Path) -> None:
    save(tmp_path / "x_val_000000", range(0, 50))
    save(tmp_path / "x_train_000001", range(50, 130))
    save(tmp_path / "x_train_000002", range(130, 200))
    (tmp_path / "notes_on_training.txt").write_text("no shard")
    data = open_dataset(str(tmp_path))
    assert data.tokenizer.kind == "gpt2"
    assert data.splits["train"][:].tolist() == list(range(50, 200))
    assert data.splits["val"][:].tolist() == list(range(50))


def test_llama_3s_tokens_are_not_taken_for_gpt2s(tmp_path: Path) -> None:
    save_llama3(tmp_path / "x_train_0", range(50))
    with pytest.raises(UserError, match=r"x_train_0\.bin holds tokens of Llama 3"):
        open_dataset(str(tmp_path))


def test_files_and_globs_are_datasets(gpt2_vocabulary: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_llmc(Path("a_train_0"), range(0, 50))
    save_npy(Path("a_train_1"), range(50, 90))
    save_bare(Path("a_val_0"), range(90, 99))
    assert open_dataset("a_*").splits["train"][:].tolist() == list(range(90))
    assert open_dataset("a_*", data_dir="elsewhere").splits["val"][:].tolist() == list(range(90, 99))
    only = open_dataset("a_train_1.npy")
    assert list(only.splits) == ["train"]
    with pytest.raises(UserError, match="has no val tokens, only train"):
        only.split("val", 4)


def nanogpt_folder(folder: Path, meta: bytes) -> Path:
    folder.mkdir()
    for split in ("train", "val"):
        np.array([0, 1, 2, 1] * 50, dtype="<u2").tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(meta)
    return folder


def test_nanogpts_own_folder_is_read(tmp_path: Path) -> None:
    meta = {"vocab_size": 3, "itos": {0: "\n", 1: "a", 2: "b"}, "stoi": {"\n": 0, "a": 1, "b": 2}}
    data = open_dataset(str(nanogpt_folder(tmp_path / "d", pickle.dumps(meta))))
    assert data.tokenizer.encode("ab\n") == [1, 2, 0]


class Hostile:
    def __reduce__(self):
        return (Path.write_text, (Path("pwned"), "x"))


def test_a_hostile_meta_pkl_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"meta\.pkl .*only plain values"):
        open_dataset(str(nanogpt_folder(tmp_path / "d", pickle.dumps({"vocab_size": Hostile()}))))
    assert not Path("pwned").exists()
