"""A large corpus is not downloaded unasked."""

import importlib
import io
from pathlib import Path

import pytest

from gpt2.cli.large import ask_for_corpus
from gpt2.data.dataset import is_dataset
from gpt2.data.prepare import prepare
from gpt2.errors import UserError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_terminal_a_line_says_what_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match="add --yes, or prepare it first: gpt2 prepare fineweb-edu"):
        ask_for_corpus("fineweb-edu", "data", yes=False)
    line = capsys.readouterr().err
    assert "a download of 28." in line or "a download of 29." in line
    assert "about 20.0 GB in data" in line  # ten billion tokens of two bytes
    ask_for_corpus("fineweb-edu", "data", yes=True)


@pytest.mark.parametrize(
    ("answer", "goes_on"), [("y\n", True), ("YES\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_on_a_terminal_it_asks(answer: str, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", Terminal())
    if goes_on:
        ask_for_corpus("tinystories", "data", yes=False)
    else:
        with pytest.raises(UserError, match="nothing was downloaded"):
            ask_for_corpus("tinystories", "data", yes=False)


@pytest.mark.parametrize("name", ["shakespeare_char", "pystdlib", "a/folder", ""])
def test_small_and_unknown_data_raise_no_question(name: str) -> None:
    ask_for_corpus(name, "data", yes=False)


def test_a_prepared_corpus_raises_no_question(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n" * 100)
    prepare(tmp_path / "text.txt", out=tmp_path / "data" / "tinystories", tokenizer="byte")
    ask_for_corpus("tinystories", "data", yes=False)


def test_processes_start_when_the_corpus_is_there(
    gpt2_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for the one that prepares it, and not for as long as a large corpus takes."""
    (tmp_path / "text.txt").write_text("some words\n" * 100)
    monkeypatch.setattr(
        "gpt2.data.dataset.prepare",
        lambda name, out, **_: prepare(tmp_path / "text.txt", out=out, tokenizer="byte"),
    )
    module = importlib.import_module("gpt2.cli.train")  # the package has a function of that name
    monkeypatch.setattr(module, "launch", lambda *_, **__: 7 if is_dataset(Path("data/pystdlib")) else 8)
    assert gpt2_command("train", "--dataset=pystdlib", "--nproc=2")[0] == 7
