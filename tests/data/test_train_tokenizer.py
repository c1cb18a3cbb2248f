"""A vocabulary learned from files, and the report on it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2 import tokenizers
from gpt2.data import train_tokenizer as module
from gpt2.data.dataset import open_dataset
from gpt2.data.sources import Piece
from gpt2.data.train_tokenizer import train_tokenizer
from gpt2.errors import UserError
from gpt2.formats.tokenizer_files import open_tokenizer
from gpt2.tokenizers import train_bpe


@pytest.fixture(autouse=True)
def _without_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's tokenizer is not to be had, unless a test puts one here."""

    def missing() -> None:
        raise UserError("cannot download GPT-2's vocabulary")

    monkeypatch.setattr(module, "gpt2_tokenizer", missing)


def write_rows(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def test_every_twentieth_document_is_measured_and_not_trained_on(text: str, tmp_path: Path) -> None:
    lines = [line.upper() if i % 20 == 19 else line for i, line in enumerate(text.splitlines())]
    write_rows(tmp_path / "a.jsonl", lines[:210], "body")
    write_rows(tmp_path / "b.jsonl", lines[210:], "body")
    tokenizer, report = train_tokenizer(tmp_path, vocab_size=300, field="body")
    held_out = lines[19::20]
    assert tokenizer.tokens == train_bpe([line for line in lines if not line.isupper()], 300).tokens
    assert report.characters == sum(map(len, lines))
    assert report.measured_bytes == sum(map(len, held_out))
    assert report.bytes_per_token == report.measured_bytes / sum(len(tokenizer.encode(line)) for line in held_out)


def test_of_fewer_documents_the_end_of_all_is_measured(text: str, tmp_path: Path) -> None:
    parts = [text[:9000], text[9000:-700], text[-700:]]
    for i, part in enumerate(parts):
        (tmp_path / f"{i}.txt").write_text(part)
    tokenizer, report = train_tokenizer(*sorted(tmp_path.iterdir()), vocab_size=300)
    cut = len(text) * 19 // 20
    assert 9000 < cut < len(text) - 700  # within the second
    assert tokenizer.tokens == train_bpe([parts[0], text[9000:cut]], 300).tokens
    assert report.measured_bytes == len(text) - cut
    tokens = len(tokenizer.encode(text[cut:-700])) + len(tokenizer.encode(parts[2]))
    assert report.bytes_per_token == report.measured_bytes / tokens


@pytest.mark.parametrize("more", [0, 5])
def test_no_more_is_read_than_asked_for(more: int, text: str, tmp_path: Path) -> None:
    rows = text.splitlines()
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.txt").write_bytes(b"\xff never read")
    limit = sum(map(len, rows[:40])) + more
    tokenizer, report = train_tokenizer(tmp_path, vocab_size=280, max_characters=limit)
    assert report.characters == limit
    expected = [row for i, row in enumerate([*rows[:40], rows[40][:more]]) if i % 20 != 19]
    assert tokenizer.tokens == train_bpe(expected, 280).tokens


def test_the_text_that_is_measured_is_bounded(monkeypatch, text: str, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MEASURED", 100)
    write_rows(tmp_path / "a.jsonl", text.splitlines())
    _, report = train_tokenizer(tmp_path / "a.jsonl", vocab_size=300)
    assert report.measured_bytes == 100


def test_the_text_is_never_completely_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Text(str):
        alive = most = 0

        def __init__(self, _: str) -> None:
            Text.alive += 1
            Text.most = max(Text.most, Text.alive)

        def __del__(self) -> None:
            Text.alive -= 1

    def many(*arguments: object) -> Iterator[Piece]:
        for i in range(1000):
            yield Piece(Text(f"document number {i} " * 5))

    monkeypatch.setattr("gpt2.data.text.pieces", many)
    (tmp_path / "a.txt").touch()
    _, report = train_tokenizer(tmp_path / "a.txt", vocab_size=300)
    assert report.characters > 1000 * 80
    assert Text.most < 10


def test_it_is_compared_with_gpt2s(monkeypatch: pytest.MonkeyPatch, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    other = tokenizers.ByteTokenizer()
    monkeypatch.setattr(module, "gpt2_tokenizer", lambda: other)
    _, report = train_tokenizer(tmp_path / "a.txt", vocab_size=300)
    assert report.gpt2_bytes_per_token == 1
    assert report.ratio == report.bytes_per_token > 2
    assert report.longest_tokens[0] == max(report.longest_tokens, key=len)


def test_a_file_that_cannot_be_read_later_on_is_named(text: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", text.splitlines())
    (tmp_path / "b.jsonl").write_text('{"txt": "x"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: no text in 'text'"):
        train_tokenizer(tmp_path, vocab_size=300)


@pytest.mark.parametrize("one_file", [False, True])
def test_special_tokens_in_the_text_are_not_trained_on(one_file: bool, text: str, tmp_path: Path) -> None:
    """The characters <|> are in special tokens alone here, so that a longer token with one of them was merged."""
    markers = ("<|user|>", "<|endoftext|>")
    lines = [line.replace(" ", f" {markers[i % 2]}", 2) for i, line in enumerate(text.splitlines())]
    plain = [piece for line in lines for part in line.split(markers[0]) for piece in part.split(markers[1])]
    assert train_bpe(lines, 280, ["<|user|>"]).tokens == train_bpe(plain, 279).tokens
    if one_file:  # trained on up to an offset, which may be inside of a special token
        (tmp_path / "a.txt").write_text("<|user|>".join(lines))
    else:
        write_rows(tmp_path / "a.jsonl", lines)
    notes: list[str] = []
    tokenizer, report = train_tokenizer(
        tmp_path, vocab_size=280, specials=["<|user|>", "<|usr|>", "[PAD]"], note=notes.append
    )
    assert [token for token in tokenizer.tokens if len(token) > 1 and set(token) & set(b"<|>")] == []
    if not one_file:
        held_out = [line for i, line in enumerate(lines) if i % 20 == 19]
        ordinary = [piece for line in held_out for part in line.split(markers[0]) for piece in part.split(markers[1])]
        assert report.measured_bytes == sum(map(len, ordinary))
        assert report.bytes_per_token == report.measured_bytes / sum(
            len(tokenizer.encode(piece)) for piece in ordinary
        )
    assert [note for note in notes if "<|usr|>, [PAD]" in note and "not in the text" in note]
    assert not [note for note in notes if "<|user|>" in note]


@pytest.mark.parametrize("cut", range(3, 14))
def test_the_offset_up_to_which_is_trained_divides_no_special_token(cut: int) -> None:
    reading = module._Reading(cut, ["<|user|>"])
    heads = list(reading.training(["12345<|user|>678"]))
    assert "".join([*heads, *reading.held_out]) == "12345<|user|>678"
    assert heads == ["12345<|user|>678"[: cut if cut <= 5 or cut >= 13 else 5]]


def test_the_command_writes_what_prepare_takes(gpt2_command, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    line = ["tokenizer", "train", tmp_path / "a.txt", "--vocab_size=302", "--special_tokens", "<|user|>", "[PAD]"]
    status, out, err = gpt2_command(*line, "--out", tmp_path, "--json")
    assert status == 0, err
    assert "not compared with GPT-2's tokenizer: cannot download" in err
    path = tmp_path / "tokenizer.json"
    figures = json.loads(out)
    assert (figures["out"], figures["ids"], figures["ratio"]) == (str(path), 302, None)
    expected = train_bpe([text[: len(text) * 19 // 20]], 302, ["<|user|>", "[PAD]"])
    assert open_tokenizer(str(path)).to_json() == expected.to_json()
    assert "<|user|>" in expected.special.ids
    status, _, err = gpt2_command("prepare", tmp_path / "a.txt", f"--tokenizer={path}", "--out", tmp_path / "d")
    assert status == 0, err
    assert open_dataset(str(tmp_path / "d"), "data", print).tokenizer.to_json() == expected.to_json()


def test_the_command_shows_a_table_and_replaces_only_where_asked(gpt2_command, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    line = ["tokenizer", "train", tmp_path / "a.txt", "--vocab_size=300", "--out", tmp_path / "mine.json"]
    status, out, err = gpt2_command(*line)
    assert status == 0, err
    rows = {row[:22].strip(): row[22:] for row in out.splitlines()}
    assert rows["ids"] == "300"
    assert rows["kept out of training"] == f"{len(text) - len(text) * 19 // 20:,} bytes measured"
    assert float(rows["bytes per token"]) > 2
    assert " some" in rows["longest tokens"]
    before = (tmp_path / "mine.json").read_bytes()
    assert gpt2_command(*line, "--special_tokens=<|a|>")[0] == 2
    assert (tmp_path / "mine.json").read_bytes() == before
    assert gpt2_command(*line, "--special_tokens=<|a|>", "--overwrite")[0] == 0
    assert open_tokenizer(str(tmp_path / "mine.json")).special.markers == ["<|endoftext|>", "<|a|>"]


def test_the_smallest_vocabulary_is_the_bytes(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    tokenizer, report = train_tokenizer(tmp_path / "a.txt", vocab_size=258, specials=["<|a|>"])
    assert (tokenizer.vocab_size, len(tokenizer.tokens), report.bytes_per_token) == (258, 256, 1)


def test_a_corpus_by_name(tmp_path: Path) -> None:
    _, report = train_tokenizer("pystdlib", vocab_size=400, max_characters=300_000)
    assert report.characters == 300_000
    assert report.bytes_per_token > 1.5
