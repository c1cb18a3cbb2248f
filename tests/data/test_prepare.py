import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data import prepare as module
from gpt2.data import tokenise
from gpt2.data.corpora import CORPORA
from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.data.sources import Reading, pieces
from gpt2.errors import UserError
from gpt2.tokenizers import train_bpe

NANOGPT_SHA256 = {
    ("shakespeare_char", "train"): "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f",
    ("shakespeare_char", "val"): "d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1",
    ("shakespeare", "train"): "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f",
    ("shakespeare", "val"): "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b",
}


@pytest.mark.parametrize("name", ["shakespeare_char", "shakespeare"])
def test_shakespeare_files_are_nanogpts(name: str, shared_data: Path, gpt2_vocabulary: None, tmp_path: Path) -> None:
    out = prepare(name, out=tmp_path / name, given=shared_data / "shakespeare" / "input.txt")
    for split in ("train", "val"):
        found = hashlib.sha256((out / f"{split}.bin").read_bytes()).hexdigest()
        assert found == NANOGPT_SHA256[name, split]


def test_a_changed_shakespeare_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("To be, or not to be")
    with pytest.raises(UserError, match="not the tiny Shakespeare"):
        prepare("shakespeare", out=tmp_path / "out", given=tmp_path / "input.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_tokens_decode_to_the_text(tokenizer: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    prepare(
        tmp_path / "a.txt", out=tmp_path / "out", tokenizer=tokenizer, vocab_size=300 if tokenizer == "bpe" else None
    )
    data = open_dataset(str(tmp_path / "out"))
    train, val = (data.tokenizer.decode(data.splits[s][:].tolist()) for s in ("train", "val"))
    assert train + val == text
    assert len(train) == int(0.9 * len(text))


@pytest.mark.parametrize(
    ("files", "rows", "fraction"),
    [
        (1, 40, 0.1),
        (40, 1, 0.1),
        (5, 5, 0.1),
        (50, 50, 0.01),
        (50, 60, 0.01),
        (7, 13, 0.3),
        (300, 1, 0.02),
        (3, 900, 0.005),
    ],
)
def test_many_documents_are_split_whole_and_end_with_end_of_text(
    files: int, rows: int, fraction: float, tmp_path: Path
) -> None:
    every = [[f"document {i} of {j}" for i in range(rows)] for j in range(files)]
    for j, texts in enumerate(every):
        (tmp_path / f"{j:03d}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(tmp_path, out=tmp_path / "out", tokenizer="byte", val_fraction=fraction)
    data = open_dataset(str(tmp_path / "out"))
    train, val = (data.tokenizer.decode(data.splits[s][:].tolist()).split("<|endoftext|>") for s in ("train", "val"))
    assert (train.pop(), val.pop()) == ("", "")
    assert sorted(train + val) == sorted(itertools.chain(*every))
    assert len(val) == pytest.approx(files * rows * fraction, abs=max(1, 0.3 * files * rows * fraction))
    if files == 1:
        assert val == [text for i, text in enumerate(every[0]) if i % 10 == 9]


def test_no_text_is_taken_twice(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for name in "abc":
        (tmp_path / "t" / f"{name}.txt").write_text(name * 9)
    out = prepare(
        tmp_path / "t", tmp_path / "t" / "a.txt", val=[tmp_path / "t" / "b.txt"], out=tmp_path / "d", tokenizer="byte"
    )
    data = open_dataset(str(out))
    texts = [data.tokenizer.decode(data.splits[s][:].tolist()) for s in ("train", "val")]
    assert [t.split("<|endoftext|>")[:-1] for t in texts] == [["a" * 9, "c" * 9], ["b" * 9]]
    with pytest.raises(UserError, match="all of the text is for validation"):
        prepare(tmp_path / "t", val=str(tmp_path / "t"), out=tmp_path / "e", tokenizer="byte")


@given(st.text(alphabet="ab \n\t'1.é\x1c\u3000"), st.integers(1, 5), st.sampled_from([None, "\n\n", "<|endoftext|>"]))
def test_tokens_do_not_depend_on_where_the_text_is_cut(text: str, chunk: int, separator: str | None) -> None:
    tokenizer = train_bpe(["a few words  and\n\n  some spaces \n" * 20], 280)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.txt"
        file.write_bytes(text.encode())
        parts = list(pieces(file, Reading(separator=separator, chunk=chunk)))
    assert "".join(p.text for p in parts) == text
    documents = [d + (separator or "") for d in text.split(separator)] if separator else [text]
    if separator:
        documents[-1] = documents[-1].removesuffix(separator)
        documents = documents if documents[-1] else documents[:-1]
    found = itertools.groupby(zip(parts, itertools.accumulate(p.starts for p in parts), strict=True), lambda x: x[1])
    for (_, own), document in zip(found, documents, strict=True):
        own = [p for p, _ in own]
        assert [p.ends for p in own] == [False] * (len(own) - 1) + [True]
        assert [i for p in own for i in tokenizer.encode(p.text)] == tokenizer.encode(document)


def test_long_text_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some\nlines\nof\ntext\n" * 3)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "some lines of text " * 3}))
    assert len(list(pieces(tmp_path / "a.txt", Reading(chunk=5)))) > 3
    assert len(list(pieces(tmp_path / "a.jsonl", Reading(chunk=12)))) > 3


def test_the_standard_library_is_found_in_a_fixed_order() -> None:
    files = [Path(i.name) for i in CORPORA["pystdlib"].inputs(None)]
    assert len(files) > 300
    assert files == [Path(i.name) for i in CORPORA["pystdlib"].inputs(None)]
    assert not any("site-packages" in f.parts or "test" in f.parts for f in files)


def test_a_dataset_is_not_overwritten_unasked(dataset: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(text[::-1])
    before = (dataset / "train.bin").read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        prepare(tmp_path / "b.txt", out=dataset, tokenizer="char")
    assert (dataset / "train.bin").read_bytes() == before


def test_description_counts_what_was_written(dataset: Path, text: str) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    for split in ("train", "val"):
        content = (dataset / f"{split}.bin").read_bytes()
        assert description["tokens"][split] == len(np.frombuffer(content, dtype="<u2"))
        [file] = description["files"][split]
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
    assert sum(description["bytes"].values()) == len(text.encode())


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"\xff\xfe", {}, "not UTF-8"),
        (b"", {}, "too few"),
        (b"x" * 100, {"val_fraction": 1.5}, "val_fraction"),
        (b"x" * 100, {"tokenizer": "word"}, "word"),
        (b"x" * 100, {"tokenizer": "bpe", "vocab_size": 100_000}, ""),
        (b"x" * 100, {"given": Path("x")}, "--from"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    content: bytes, settings: dict, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    if message:
        with pytest.raises(UserError, match=message):
            prepare(tmp_path / "a.txt", out=tmp_path / "out", **{"tokenizer": "char"} | settings)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]
    else:  # a vocabulary larger than the text can fill is as large as the text can fill
        prepare(tmp_path / "a.txt", out=tmp_path / "out", **settings)
        assert open_dataset(str(tmp_path / "out")).tokenizer.vocab_size < 300


def test_nothing_but_a_dataset_is_ever_replaced(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    books = tmp_path / "data" / "books"
    books.mkdir(parents=True)
    (books / "a.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    for out in (books, Path(), tmp_path, books / "a.txt"):
        for overwrite in (False, True):
            with pytest.raises(UserError, match="holds no dataset"):
                prepare(books, out=out, tokenizer="char", overwrite=overwrite)
    assert (books / "a.txt").read_text() == text
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "books", "a.txt"]


def test_overwriting_replaces_the_dataset_and_leaves_the_rest(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    out = prepare(tmp_path / "a.txt", out=tmp_path / "out", tokenizer="char")
    (out / "notes.txt").write_text("mine")
    prepare(tmp_path / "a.txt", out=out, tokenizer="byte", overwrite=True)
    assert open_dataset(str(out)).tokenizer.kind == "byte"
    assert sorted(p.name for p in out.iterdir()) == ["dataset.json", "notes.txt", "train.bin", "val.bin"]


def test_a_few_documents_keep_their_ends_and_gain_nothing(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 10)
    end = "<|endoftext|>"
    prepare(tmp_path, out=tmp_path / "bytes", tokenizer="byte", val_fraction=0.2)
    data = open_dataset(str(tmp_path / "bytes"))
    texts = {s: data.tokenizer.decode(data.splits[s][:].tolist()) for s in ("train", "val")}
    assert texts == {"train": "a" * 10 + end + "b" * 10 + end + "cccc", "val": "cccccc" + end}
    prepare(*(tmp_path / f"{n}.txt" for n in "abc"), out=tmp_path / "chars", tokenizer="char", val_fraction=0.2)
    assert open_dataset(str(tmp_path / "chars")).tokenizer.characters == "abc"


@pytest.mark.parametrize("format", ["nanogpt", "llmc"])
def test_each_of_a_few_long_documents_gives_its_end_for_validation(format: str, tmp_path: Path) -> None:
    texts = [name * size for name, size in (("a", 3000), ("b", 50), ("c", 2000))]
    files = [tmp_path / f"{text[0]}.txt" for text in texts]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    notes: list[str] = []
    out = prepare(*files, out=tmp_path / "d", tokenizer="byte", format=format, note=notes.append)
    data = open_dataset(str(out))
    found = [data.tokenizer.decode(data.splits[s][:].tolist()).split("<|endoftext|>") for s in ("train", "val")]
    at = 0 if format == "llmc" else -1
    assert [split.pop(at) for split in found] == ["", ""]
    assert found == [["a" * 2700, "b" * 45, "c" * 1800], ["a" * 300, "b" * 5, "c" * 200]]
    assert "there are only 3 documents: the end of each of them is for validation" in notes
    (tmp_path / "one.txt").write_text("".join(texts))
    out = prepare(tmp_path / "one.txt", out=tmp_path / "e", tokenizer="byte", format=format, note=notes.append)
    assert len(open_dataset(str(out)).splits["val"][:]) == 505
    assert sum("there are only" in note for note in notes) == 1


def test_a_few_documents_are_split_alike_after_kills_and_by_workers(tmp_path: Path, monkeypatch) -> None:
    texts = [f"some {name} words, " * 900 for name in "abc"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    files = sorted(tmp_path.glob("*.txt"))
    alone = prepare(*files, out=tmp_path / "alone", tokenizer="bpe", vocab_size=270)
    monkeypatch.setattr(module, "CHUNK", 700)
    monkeypatch.setattr(tokenise, "BATCH", 300)
    monkeypatch.setattr(tokenise, "RECORD_SECONDS", 0.0)

    def stop(read: int, total: int, tokens: int) -> None:
        if tokens > stopped[0] + 4000:
            stopped[0] = tokens
            raise KeyboardInterrupt

    stopped, kills = [0], 0
    while not (tmp_path / "killed" / "dataset.json").exists():
        try:
            prepare(*files, out=tmp_path / "killed", tokenizer="bpe", vocab_size=270, progress=stop, workers=2)
        except KeyboardInterrupt:
            kills += 1
    assert kills > 1
    for name in ("train.bin", "val.bin", "dataset.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (alone / name).read_bytes()


def test_a_corpus_is_prepared_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prepared alone"):
        prepare("pystdlib", tmp_path / "a.txt", out=tmp_path / "out")


def test_a_replacement_that_was_killed_is_noticed_and_done_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    out = prepare(tmp_path / "a.txt", out=tmp_path / "out", tokenizer="char")
    (out / ".new").mkdir()
    (out / ".new" / "val.bin").write_bytes(b"half")
    assert open_dataset(str(out)).tokenizer.kind == "char"  # killed before the old one was touched
    (out / "dataset.json").unlink()
    with pytest.raises(UserError, match="interrupted"):
        open_dataset(str(out))
    prepare(tmp_path / "a.txt", out=out, tokenizer="byte")
    assert open_dataset(str(out)).tokenizer.kind == "byte"
    assert sorted(p.name for p in out.iterdir()) == ["dataset.json", "train.bin", "val.bin"]
