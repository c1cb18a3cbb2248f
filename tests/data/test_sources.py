"""Documents out of files of every kind."""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt2.data import sources
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.data.sources import Reading, find_files, pieces
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
    return [piece.text for piece in pieces(file, Reading(field))]


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
        ("a.jsonl.gz", gzip.compress(JSONL * 100, mtime=0)[:-20], "a.jsonl.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / name)


ROWS = [{"meta": {"text": text}, "id": i} for i, text in enumerate(TEXTS)]


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("a.json", json.dumps(TEXTS), "text"),
        ("a.json", json.dumps([{"text": text} for text in TEXTS], indent=2), "text"),
        ("a.json", json.dumps(ROWS), "meta.text"),
        ("a.json", "\n" + "".join(json.dumps(row) + "\n" for row in ROWS), "meta.text"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), "meta.text"),
        ("a.jsonl", "".join(json.dumps({"meta.text": text}) + "\n" for text in TEXTS), "meta.text"),
    ],
)
def test_json_of_every_shape_is_read(name: str, content: str, field: str, tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        (tmp_path / name).write_text(mark + content)
        assert documents(tmp_path / name, field) == TEXTS


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")])
def test_tables_are_read_by_their_header(name: str, delimiter: str, tmp_path: Path) -> None:
    out = io.StringIO()
    texts = ["plain", 'a "quoted" one,\twith\r\nlines', "日本"]
    csv.writer(out, delimiter=delimiter).writerows(
        [["id", "body"], *([i, text] for i, text in enumerate(texts)), [9]]
    )
    content = out.getvalue().encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [p.text for p in pieces(tmp_path / name, Reading("body")) if not p.missing] == texts
    assert sum(p.missing for p in pieces(tmp_path / name, Reading("body"))) == 1
    with pytest.raises(UserError, match=r"no column 'text' \(it has id, body\)"):
        documents(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"data": [\n1]}', r"no text in 'text' \(it has data\)"),
        ("a.json", b'[{"text": "a"},\n', "a.json: not JSON"),
        ("a.csv", b'text,b\n"never ended,3\n', "line 2: not CSV .* quotation mark"),
        ("a.jsonl", b'{"a": 1}\n' * 2000 + b"not even JSON", r"line 1: no text in 'text' \(it has a\)"),
        ("a.bin", b"%PDF-1.7\n", "is a PDF document, not text"),
        ("a.txt", b"\x93NUMPY\x01\x00v\x00", "is a NumPy array"),
        ("a.txt", gzip.compress(b"text", mtime=0), r"compressed by gzip, not text; let its name end with .gz"),
        ("a.txt", "text".encode("utf-16"), "not UTF-8 text but UTF-16; convert it: iconv -f UTF-16 -t UTF-8 a.txt"),
        ("a.txt", "text".encode("utf-32"), "not UTF-8 text but UTF-32;"),
        ("a.jsonl", (json.dumps(TEXTS) * 9).encode("utf-16-le"), "not UTF-8 text but UTF-16LE;"),
        ("a.txt", ("text " * 9).encode("utf-16-be"), "iconv -f UTF-16BE"),
        ("train.bin", np.arange(100, dtype="<u2").tobytes(), "is binary, as files of tokens are; gpt2 train reads"),
        ("a.txt", ("text " * 9).encode("utf-32-le"), "iconv -f UTF-32LE"),
        ("a.dat", bytes(1000) + b"tokens", "a.dat is binary data"),
    ],
)
def test_what_is_no_text_is_recognised(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / name)


def test_archives_are_refused_and_omitted_in_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    for name, mode in (("b.tar", "w"), ("b.tar.gz", "w:gz"), ("b.tgz", "w:gz"), ("b.tar.xz", "w:xz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "a.txt", "a.txt")
        with pytest.raises(UserError, match=rf"{name} is a tar archive, not text; unpack it first"):
            documents(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "c.docx", "w") as archive:
        archive.writestr("a.xml", "text")
    with pytest.raises(UserError, match=r"c.docx is a ZIP archive"):
        documents(tmp_path / "c.docx")
    notes: list[str] = []
    assert find_files(str(tmp_path), notes.append) == [tmp_path / "a.txt"]
    assert notes == [f"{tmp_path}: 5 files of other kinds omitted"]


def test_hidden_files_are_omitted_unless_named(tmp_path: Path) -> None:
    for name in ("a.txt", "._a.txt", ".git/x.txt", ".ipynb_checkpoints/a.txt", "__MACOSX/a.txt", "b/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    notes: list[str] = []
    assert find_files(str(tmp_path), notes.append) == [tmp_path / "a.txt"]
    assert notes == [
        f"{tmp_path}: 5 hidden files and folders are omitted (.DS_Store, ._a.txt, .git, .ipynb_checkpoints)"
    ]
    assert find_files(str(tmp_path / "._a.txt")) == [tmp_path / "._a.txt"]
    assert find_files(str(tmp_path / ".git")) == [tmp_path / ".git" / "x.txt"]


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/a.txt", "b/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    scan, notes = os.scandir, list[str]()

    def refusing(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert find_files(str(tmp_path), notes.append) == [tmp_path / "a" / "a.txt"]
    assert notes == [f"{tmp_path / 'b'} cannot be read (Permission denied) and is omitted"]


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/null"):
        with pytest.raises(UserError, match="is a pipe or a device; pipe its text into `gpt2 prepare -`"):
            prepare(name, out=tmp_path / "d")


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    texts = [None if i % 10 == 3 else f"document {i}" for i in range(40)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t} if i else {}) + "\n" for i, t in enumerate(texts))
    )
    parquet.write_table(pyarrow.table({"m": [{"t": text} for text in texts]}), tmp_path / "a.parquet")
    for name, field, missing in (("a.jsonl", "text", 5), ("a.parquet", "m.t", 4)):
        notes: list[str] = []
        out = prepare(tmp_path / name, out=tmp_path / field, tokenizer="byte", field=field, note=notes.append)
        assert f"{missing} rows without text skipped" in notes
        data = open_dataset(str(out))
        found = "".join(data.tokenizer.decode(data.splits[s][:].tolist()) for s in ("train", "val"))
        expected = [text for text in texts[name == "a.jsonl" :] if text]
        assert sorted(found.split("<|endoftext|>")[:-1]) == sorted(expected)


def test_a_field_of_files_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(UserError, match=r"--field=body is for files of rows"):
        prepare(tmp_path / "a.txt", out=tmp_path / "d", field="body")


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>"])
def test_a_separator_that_does_not_occur_is_reported(separator: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a line\r\n\r\n" * 50)
    notes: list[str] = []
    prepare(tmp_path / "a.txt", out=tmp_path / "d", tokenizer="byte", separator=separator, note=notes.append)
    assert f"the separator {separator!r} does not occur in {tmp_path / 'a.txt'}: it is one document" in notes
    (tmp_path / "a.txt").write_text("a line\r\n\r\n" * 50 + separator)
    prepare(tmp_path / "a.txt", out=tmp_path / "e", tokenizer="byte", separator=separator, note=notes.append)
    assert sum("does not occur" in note for note in notes) == 1


def test_text_without_spaces_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_CHUNK", 500)
    chinese, letters = "的一是不了，人我在。" * 300, "ACGT" * 1000
    for name, text in (("zh", chinese), ("dna", letters)):
        (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}))
        for suffix in (".txt", ".jsonl"):
            file = tmp_path / f"{name}{suffix}"
            found = list(pieces(file, Reading(chunk=100, anywhere=True)))
            assert "".join(p.text for p in found) == text
            assert max(len(p.text) for p in found) <= 200
            assert [p.starts for p in found] == [True] + [False] * (len(found) - 1)
            if name == "zh":
                found = list(pieces(file, Reading(chunk=100)))
                assert all(p.text[-1] in "，。" or q.text[0] in "，。" for p, q in itertools.pairwise(found))
                assert max(len(p.text) for p in found) <= 200
            else:
                with pytest.raises(UserError, match="too many for a BPE; use --tokenizer=byte or --tokenizer=char"):
                    list(pieces(file, Reading(chunk=100)))


def test_rows_become_documents_of_the_dataset(tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"body": f"document {i}"}) for i in range(40)]
    Path("mine.v1.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    status, _, err = gpt2_command("prepare", "mine.v1.jsonl.gz", "--field=body", "--tokenizer=byte")
    assert status == 0, err
    assert "1 file, " in err
    data = open_dataset("mine")
    texts = [data.tokenizer.decode(data.splits[name][:].tolist()) for name in ("train", "val")]
    found = "".join(texts).split("<|endoftext|>")[:-1]
    assert sorted(found) == sorted(f"document {i}" for i in range(40))


def test_omitted_files_of_a_folder_are_reported(tmp_path: Path) -> None:
    for name in ("a.TXT", "b.html", "c.csv"):
        (tmp_path / name).write_text("text")
    notes: list[str] = []
    assert find_files(str(tmp_path), notes.append) == [tmp_path / "a.TXT"]
    assert notes == [f"{tmp_path}: 2 files of other kinds omitted"]


def test_text_without_a_place_to_cut_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_CHUNK", 5000)
    (tmp_path / "a.txt").write_text("x" * 6000)
    with pytest.raises(UserError, match=r"a.txt has 5,\d+ characters in a row without white space or punct"):
        list(pieces(tmp_path / "a.txt", Reading(chunk=100)))
    (tmp_path / "a.txt").write_text("x" * 4000 + " " + "x" * 4000)
    assert [len(p.text) for p in pieces(tmp_path / "a.txt", Reading(chunk=100))] == [4000, 4001]


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


def test_the_folder_of_a_run_and_folders_without_text_are_refused(tiny, dataset: Path, tmp_path: Path) -> None:
    run = train(tiny(sample_interval=10)).out_dir
    (tmp_path / "disk" / "train").mkdir(parents=True)
    (tmp_path / "disk" / "train" / "data-00000-of-00001.arrow").write_bytes(b"\xff" * 8)
    shutil.copytree(dataset, tmp_path / "tokens")
    for folder, message in (
        (run, "is the folder of a run, and no text"),
        (tmp_path / "disk", "load_from_disk"),
        (tmp_path / "tokens", f"train on them with --dataset={tmp_path / 'tokens'}"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(folder, out=tmp_path / "d", tokenizer="byte")
