"""Parts of a corpus prepared apart and put together are the files of one preparation."""

import json
import shutil
from pathlib import Path

import pytest

from gpt2.data.prepare import prepare
from gpt2.errors import UserError

KINDS = {
    "nanogpt": {"format": "nanogpt", "val_fraction": 0.07},
    "llmc": {"format": "llmc", "shard_size": 700, "val_tokens": 1000},
    "npy": {"format": "npy", "shard_size": 900},
    "char": {"format": "nanogpt", "tokenizer": "char"},
}


@pytest.fixture
def corpus(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    lines = text.split("\n")
    for i in range(5):
        rows = "".join(json.dumps({"text": line}) + "\n" for line in lines[i::5])
        (folder / f"{i}.jsonl").write_text(rows)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_join_to_the_files_of_one_machine(
    kind: str, n: int, corpus: Path, tmp_path: Path, gpt2_command
) -> None:
    settings = {"tokenizer": "byte", **KINDS[kind]}
    options = [f"--{key}={value}" for key, value in settings.items()]
    single = prepare(corpus, out=tmp_path / "single", **settings)
    parts = [tmp_path / f"part{i}" for i in range(1, n + 1)]
    for i, part in enumerate(parts, start=1):
        elsewhere = shutil.copytree(corpus, tmp_path / f"machine{i}" / corpus.name)
        status, _, err = gpt2_command("prepare", elsewhere, f"--out={part}", f"--part={i}/{n}", *options)
        assert status == 0, err
    status, _, err = gpt2_command("prepare", "--join", *reversed(parts), "--out", tmp_path / "joined")
    assert status == 0, err
    found, expected = content(tmp_path / "joined"), content(single)
    for files in (found, expected):  # where the text lay differs
        files["dataset.json"] = json.dumps(json.loads(files["dataset.json"]) | {"source": ""}).encode()
    assert found == expected


def test_wrong_parts_are_refused(corpus: Path, tmp_path: Path, gpt2_command) -> None:
    for i in (1, 2, 3):
        prepare(corpus, out=tmp_path / f"p{i}", tokenizer="byte", part=(i, 3))
    shutil.copytree(tmp_path / "p2", tmp_path / "again")
    shutil.copytree(tmp_path / "p2", tmp_path / "damaged")
    content = bytearray((tmp_path / "damaged" / "train.bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "damaged" / "train.bin").write_bytes(content)
    prepare(corpus, out=tmp_path / "other", tokenizer="byte", val_fraction=0.2, part=(2, 3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "dataset.json").write_text('{"part": [2, 3]}')
    cases = {
        ("p1", "p3"): "part 2/3 is missing; all 3 are needed",
        ("p1", "p2", "again", "p3"): "are both part 2/3",
        ("p1", "other", "p3"): "parts of different preparations",
        ("p1", "damaged", "p3"): "its SHA-256 differs",
        ("p1", "empty", "p3"): "is no part of a dataset",
        ("p1", "strange", "p3"): "dataset.json has no files; prepare the part again",
        ("p1", "p2", "p3", "--val_tokens=5"): "leave --val_tokens out with --join",
    }
    for names, message in cases.items():
        status, _, err = gpt2_command(
            "prepare", "--join", *(n if n[0] == "-" else tmp_path / n for n in names), "--out", tmp_path / "joined"
        )
        assert status == 2
        assert message in err
        assert not (tmp_path / "joined").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("0/3", "no part 0/3"),
        ("4/3", "no part 4/3"),
        ("half", "give it as I/N"),
        ("1/9", "5 files cannot be shared"),
    ],
)
def test_a_part_there_is_not(part: str, message: str, corpus: Path, tmp_path: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("prepare", corpus, "--tokenizer=byte", f"--out={tmp_path / 'd'}", f"--part={part}")
    assert status == 2
    assert message in err


def test_the_first_part_must_hold_the_validation_tokens(corpus: Path, tmp_path: Path) -> None:
    settings = {"tokenizer": "byte", "format": "llmc", "val_tokens": 10_000}
    prepare(corpus, out=tmp_path / "single", **settings)
    with pytest.raises(UserError, match=r"the first part has .* characters, too few"):
        prepare(corpus, out=tmp_path / "p1", part=(1, 4), **settings)
    assert not (tmp_path / "p1").exists()


def test_a_few_texts_are_not_shared(tmp_path: Path, text: str) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(text)
    files = sorted(tmp_path.glob("*.txt"))
    with pytest.raises(UserError, match="has 3 documents, too few to share"):
        prepare(*files, out=tmp_path / "d", tokenizer="byte", part=(1, 2))
