"""`gpt2 tokenizer encode` and `gpt2 tokenizer decode`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt2.data.dataset import open_dataset
from gpt2.training.loop import train

TEXT = "a  é😀<|endoftext|>\n"


@pytest.fixture
def with_input(tmp_path: Path) -> Iterator[Callable[[bytes], None]]:
    """Makes bytes the standard input of this process, until the end of the test."""
    before = os.dup(0)

    def make(content: bytes) -> None:
        (tmp_path / "input").write_bytes(content)
        file = os.open(tmp_path / "input", os.O_RDONLY)
        os.dup2(file, 0)
        os.close(file)

    yield make
    os.dup2(before, 0)
    os.close(before)


def test_ids_and_text_go_both_ways(with_input, tmp_path: Path, gpt2_command) -> None:
    expected = [*"a  é😀".encode(), 256, 10]
    (tmp_path / "t.txt").write_text(TEXT)
    for words in ([TEXT], [f"FILE:{tmp_path}/t.txt"]):
        status, out, err = gpt2_command("tokenizer", "encode", *words, "--tokenizer=byte")
        assert (status, out) == (0, " ".join(map(str, expected)) + "\n"), err
    for words in ([], ["-"]):
        with_input(TEXT.encode())
        assert gpt2_command("tokenizer", "encode", *words, "--tokenizer=byte")[1] == out
    for given in (out.split(), [",".join(out.split())], [json.dumps(expected)]):
        assert gpt2_command("tokenizer", "decode", *given, "--tokenizer=byte")[1] == TEXT
    with_input(out.encode())
    assert gpt2_command("tokenizer", "decode", "-", "--tokenizer=byte")[1] == TEXT


def test_a_special_token_is_text_if_asked_for(gpt2_command) -> None:
    out = gpt2_command("tokenizer", "encode", "<|endoftext|>", "--tokenizer=byte", "--no-parse_special")[1]
    assert out.split() == [str(byte) for byte in b"<|endoftext|>"]
    assert gpt2_command("tokenizer", "encode", "<|endoftext|>", "--tokenizer=byte")[1] == "256\n"
    assert gpt2_command("tokenizer", "encode", "", "--tokenizer=byte")[1] == "\n"


def test_the_table_and_json_show_every_token(gpt2_command) -> None:
    _, out, _ = gpt2_command("tokenizer", "encode", TEXT, "--tokenizer=byte", "--table")
    header, *lines = out.splitlines()
    assert header.split() == ["position", "id", "text"]
    assert lines[0].split() == ["0", "97", "'a'"]
    assert lines[3].split() == ["3", "195", r"b'\xc3'"]
    assert lines[-2].split() == ["9", "256", "'<|endoftext|>'"]
    assert lines[-1].split() == ["10", "10", r"'\n'"]
    found = json.loads(gpt2_command("tokenizer", "encode", "ab", "--tokenizer=byte", "--json")[1])
    assert found == {"ids": [97, 98], "tokens": ["a", "b"]}
    found = json.loads(gpt2_command("tokenizer", "decode", "97", "195", "--tokenizer=byte", "--json")[1])
    assert found == {"ids": [97, 195], "text": "a�", "tokens": ["a", "�"]}


def test_models_and_datasets_name_their_tokenizer(
    tiny, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "data/mine")
    train(tiny(max_iters=1))
    expected = " ".join(map(str, open_dataset(str(dataset)).tokenizer.encode("the cat"))) + "\n"
    for name in ("mine", "data/mine", "run", dataset / "dataset.json"):
        status, out, err = gpt2_command("tokenizer", "encode", "the cat", f"--tokenizer={name}")
        assert (status, out) == (0, expected), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decode", "257"], "'257' is no id of the byte tokenizer; give numbers from 0 to 256"),
        (["decode", "12x"], "'12x' is no id"),
        (["decode", "-1"], "'-1' is no id"),
        (["decode", "9" * 5000], "is no id"),
        (["encode", "FILE:missing"], "cannot read"),
    ],
)
def test_what_cannot_be_read_is_a_mistake(words: list[str], message: str, gpt2_command) -> None:
    status, out, err = gpt2_command("tokenizer", *words, "--tokenizer=byte")
    assert (status, out) == (2, "")
    assert message in err
