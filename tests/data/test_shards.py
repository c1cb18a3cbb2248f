"""Token files, written here by hand as nanoGPT, llm.c and NumPy write them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import shards
from gpt2.data.shards import Shard, Tokens, content_hash, open_shard
from gpt2.errors import UserError


def save_bare(path: Path, ids: Iterable[int]) -> Path:
    path = path.with_suffix(".bin")
    np.array(list(ids), dtype="<u2").tofile(path)
    return path


def save_llmc(path: Path, ids: Iterable[int], magic: int = 20240520, version: int = 1, dtype: str = "<u2") -> Path:
    tokens, header = np.array(list(ids), dtype=dtype), np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens)
    path = path.with_suffix(".bin")
    path.write_bytes(header.tobytes() + tokens.tobytes())
    return path


def save_npy(path: Path, ids: Iterable[int], dtype: str = "<u2") -> Path:
    path = path.with_suffix(".npy")
    np.save(path, np.array(list(ids), dtype=dtype))
    return path


def save_llama3(path: Path, ids: Iterable[int]) -> Path:
    return save_llmc(path, ids, 20240801, 7, "<u4")


@pytest.mark.parametrize("save", [save_bare, save_llmc, save_llama3, save_npy, lambda p, i: save_npy(p, i, "<i4")])
def test_every_format_is_recognised_by_its_content(save, tmp_path: Path) -> None:
    ids = [50256, 3, 0, 198, 50255] * 200
    path = save(tmp_path / "x", ids)
    path = path.rename(tmp_path / "named_otherwise")
    tokens = Tokens([open_shard(path)])
    assert len(tokens) == 1000
    assert tokens[:].tolist() == ids
    assert tokens[7:12].tolist() == ids[7:12]


def test_the_published_shards(tmp_path: Path) -> None:
    """The hash is that of llm.c's own writer."""
    ids = range(50256, 50246, -1)
    digest = hashlib.sha256(save_llmc(tmp_path / "x", ids).read_bytes()).hexdigest()
    assert digest == "8a794e7afcb6852cd216ab346d6d2589f284902f944da3dd968a3cea88d28d14"
    assert Tokens([open_shard(tmp_path / "x.bin")])[:].tolist() == list(ids)


@given(data=st.data(), counts=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_shards_are_one_long_array(data: st.DataObject, counts: list[int], tmp_path_factory) -> None:
    folder, ids = tmp_path_factory.mktemp("shards"), iter(range(1000))
    savers = (save_bare, save_llmc, save_npy, save_llama3)
    files = []
    for i, count in enumerate(counts):
        files.append(data.draw(st.sampled_from(savers))(folder / str(i), [next(ids) for _ in range(count)]))
    tokens = Tokens([open_shard(path) for path in files])
    expected = list(range(sum(counts)))
    start, stop = data.draw(st.integers(0, len(expected))), data.draw(st.integers(0, len(expected)))
    assert tokens[start:stop].tolist() == expected[start:stop]
    assert tokens[:].tolist() == expected


def test_large_datasets_are_checked_in_stretches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shards, "MAX_HASHED_TOKENS", 512)
    ids = np.zeros(1000, dtype="<u2")
    content_hash(Tokens([open_shard(save_bare(tmp_path / name, ids)) for name in "ab"], 5))
    ids[-1] = 5
    tokens = Tokens([open_shard(tmp_path / "a.bin"), open_shard(save_bare(tmp_path / "b", ids))], 5)
    with pytest.raises(UserError, match=r"b\.bin holds token id 5, but the vocabulary has 5 ids"):
        content_hash(tokens)


@given(length=st.integers(1, 2000), where=st.data())
def test_every_id_of_a_small_dataset_is_checked(length: int, where: st.DataObject, tmp_path_factory) -> None:
    ids = np.zeros(length, dtype="<i4")
    ids[where.draw(st.integers(0, length - 1))] = where.draw(st.sampled_from([7, -1]))
    path = save_npy(tmp_path_factory.mktemp("ids") / "x", ids, "<i4")
    with pytest.raises(UserError, match="holds token id"):
        content_hash(Tokens([open_shard(path)], 7))


def cut(path: Path, count: int) -> Path:
    path.write_bytes(path.read_bytes()[:count])
    return path


def patched(path: Path, word: int, value: int) -> Path:
    data = bytearray(path.read_bytes())
    data[4 * word : 4 * word + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    return path


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


DAMAGES = {
    "is missing": lambda f: f / "nothing.bin",
    "is text": lambda f: saved(f / "x.txt", "Der Fluß fließt, 河流 🌊\n" * 30),
    "is empty": lambda f: cut(save_bare(f / "x", range(5)), 0),
    "odd number of bytes": lambda f: cut(save_bare(f / "x", range(5)), 7),
    "header says 5 tokens": lambda f: cut(save_llmc(f / "x", range(5)), 1030),
    "header says 7 tokens": lambda f: patched(save_llmc(f / "x", range(5)), 2, 7),
    "header says -3 tokens": lambda f: patched(save_llmc(f / "x", range(5)), 2, -3),
    "header says 0 tokens": lambda f: save_llmc(f / "x", []),
    "version 2, which holds no tokens": lambda f: patched(save_llmc(f / "x", range(5)), 1, 2),
    "magic 20240326": lambda f: patched(save_llmc(f / "x", range(5)), 0, 20240326),
    "damaged .npy": lambda f: cut(save_npy(f / "x", range(5)), 20),
    "header says 90 tokens": lambda f: cut(save_npy(f / "x", range(90)), 200),
    "holds float64": lambda f: save_npy(f / "x", range(5), "<f8"),
    "holds >u2": lambda f: save_npy(f / "x", range(5), ">u2"),
    "holds int64": lambda f: save_npy(f / "x", range(5), "<i8"),
    "cannot be read": lambda f: loop(f / "x.bin"),
    "Is a directory": lambda f: f,
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_shard(DAMAGES[message](tmp_path))


def test_a_table_is_not_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 4), dtype="<u2"))
    with pytest.raises(UserError, match=r"shape \(3, 4\)"):
        open_shard(tmp_path / "x.npy")


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Path("x")]), allow_pickle=True)
    with pytest.raises(UserError, match="holds object"):
        open_shard(tmp_path / "x.npy")


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    shard = open_shard(save_bare(tmp_path / "x", range(100)))
    cut(tmp_path / "x.bin", 100)
    with pytest.raises(UserError, match="shorter than when it was opened"):
        shard.read(40, 60)
    assert isinstance(shard, Shard)
