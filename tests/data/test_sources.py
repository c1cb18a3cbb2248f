"""Documents out of files of every kind."""

import bz2
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2.data import sources
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.data.sources import find_files, pieces
from gpt2.errors import UserError
from gpt2.training.loop import train

TEXTS = ["one\nline", "", "naïve ☕\r\n", "日本"]
JSONL = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)).encode() + b"\n\n"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def documents(file: Path, field: str = "text") -> list[str]:
    return [piece.text for piece in pieces(file, field)]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_json_lines_and_text_are_read_compressed_or_not(suffix: str, tmp_path: Path) -> None:
    rows, text = tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.txt{suffix}"
    rows.write_bytes(COMPRESSORS[suffix](JSONL))
    text.write_bytes(COMPRESSORS[suffix](TEXTS[2].encode()))
    assert documents(rows) == TEXTS
    assert documents(text) == [TEXTS[2]]
    assert find_files(str(tmp_path)) == [rows, text]


def test_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="needs zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(JSONL))
    assert documents(tmp_path / "a.jsonl.zst") == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    parquet.write_table(pyarrow.table({"body": TEXTS, "id": range(4)}), tmp_path / "a.parquet")
    assert documents(tmp_path / "a.parquet", "body") == TEXTS
    with pytest.raises(UserError, match=r"no column 'text' \(it has body, id\); name another with --field"):
        documents(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet, row 1: 'id' is of type int, not text"):
        documents(tmp_path / "a.parquet", "id")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        documents(tmp_path / "b.parquet", "body")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}', r"line 1: no text in 'text' \(it has body, id\)"),
        ("a.jsonl", b'{"text": 3}', "line 1: 'text' is of type int, not text"),
        ("a.jsonl", b'{"text": null}', "line 1: 'text' is null, not text"),
        ("a.NDJSON", b'{"text": null}', "line 1: 'text' is null, not text"),
        ("a.jsonl", b"[1, 2]", "it has list"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half a surrogate pair"),
        ("a.txt", b"abc\xff", r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.txt.gz", b"no gzip", "a.txt.gz cannot be read"),
        ("a.jsonl.xz", lzma.compress(JSONL * 100)[:-20], "a.jsonl.xz cannot be read"),
        ("a.jsonl.gz", gzip.compress(JSONL * 100)[:-20], "a.jsonl.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / name)


def test_rows_become_documents_of_the_dataset(tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"body": f"document {i}"}) for i in range(40)]
    Path("mine.v1.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    status, _, err = gpt2_command("prepare", "mine.v1.jsonl.gz", "--field=body", "--tokenizer=byte")
    assert status == 0, err
    assert "1 files, " in err
    data = open_dataset("mine")
    texts = [data.tokenizer.decode(data.splits[name][:].tolist()) for name in ("train", "val")]
    found = "".join(texts).split("<|endoftext|>")[:-1]
    assert sorted(found) == sorted(f"document {i}" for i in range(40))


def test_omitted_files_of_a_folder_are_reported(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.html", "c.csv"):
        (tmp_path / name).write_text("text")
    notes: list[str] = []
    assert find_files(str(tmp_path), notes.append) == [tmp_path / "a.TXT"]
    assert notes == [f"{tmp_path}: 2 files of other kinds are omitted"]


def test_text_without_a_place_to_cut_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_CHUNK", 5000)
    (tmp_path / "a.txt").write_text("x" * 6000)
    with pytest.raises(UserError, match=r"a.txt has 5,\d+ characters in a row without white space or punct"):
        list(pieces(tmp_path / "a.txt", chunk=100))
    (tmp_path / "a.txt").write_text("x" * 4000 + " " + "x" * 4000)
    assert [len(p.text) for p in pieces(tmp_path / "a.txt", chunk=100)] == [4000, 4001]


def test_standard_input_is_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"some words to learn from\n" * 20)))
    data = open_dataset(str(prepare("/dev/stdin", out=tmp_path / "d", tokenizer="byte")))
    assert sum(len(tokens) for tokens in data.splits.values()) == 500
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["dataset.json", "train.bin", "val.bin"]
    status, _, err = gpt2_command("prepare", "-", "--tokenizer=byte")
    assert status == 2
    assert "give --out" in err
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = gpt2_command("prepare", "-", "--tokenizer=byte", "--out", tmp_path / "e")
    assert status == 2
    assert "no standard input" in err


def test_text_can_be_prepared_with_a_models_own_tokenizer(tiny, tmp_path: Path, gpt2_command, monkeypatch) -> None:
    """So that a model whose BPE was trained on other text can be fine-tuned on this one."""
    monkeypatch.chdir(tmp_path)
    Path("first.txt").write_text("the cat sat on the mat and the dog ran over the hill\n" * 40)
    Path("second.txt").write_text("a hat and a cat and a rat ran\n" * 40)
    assert gpt2_command("prepare", "first.txt", "--tokenizer=bpe", "--vocab_size=280", "--out=first")[0] == 0
    train(tiny(out_dir="run", dataset="first", max_iters=1))
    for i, name in enumerate(("run", "first", "first/dataset.json")):
        status, _, err = gpt2_command("prepare", "second.txt", f"--tokenizer={name}", f"--out=second{i}")
        assert status == 0, err
        assert open_dataset(f"second{i}").tokenizer.to_json() == open_dataset("first").tokenizer.to_json()
    train(tiny(out_dir="tuned", init_from="run", dataset="second0", max_iters=1))
