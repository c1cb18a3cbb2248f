"""Special tokens in prepared text: which become tokens, and what is reported."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt2.data.dataset import open_dataset
from gpt2.data.prepare import prepare
from gpt2.special_tokens import SpecialTokens
from gpt2.tokenizers import GPT2_PATTERN, BPETokenizer

BYTES = [bytes([b]) for b in range(256)]
CHAT = BPETokenizer(BYTES, GPT2_PATTERN, special=SpecialTokens.after(256, ["<|user|>", "<|two words|>"]))
USER, TWO_WORDS = 257, 258


def prepared(folder: Path, text: str, **settings: object) -> tuple[list[int], list[str], dict[str, object]]:
    """The tokens of both splits in the order of the text, the lines about the work, and the dataset's description."""
    folder.mkdir(exist_ok=True)
    (folder / "t.txt").write_text(text)
    notes: list[str] = []
    out = prepare(folder / "t.txt", out=folder / "data", note=notes.append, overwrite=True, **settings)
    dataset = open_dataset(str(out))
    parts = [dataset.splits[name] for name in ("train", "val")]
    ids = [int(i) for part in parts for i in part[0 : len(part)]]
    return ids, notes, json.loads((out / "dataset.json").read_text())


def test_a_tokenizer_with_further_special_tokens_finds_them(tmp_path: Path) -> None:
    text = "<|user|>hi<|two words|>there<|endoftext|>" * 40
    ids, notes, about = prepared(tmp_path, text, tokenizer=CHAT)
    assert (ids.count(USER), ids.count(TWO_WORDS), ids.count(256)) == (40, 40, 40)
    assert "special tokens in the text: <|endoftext|> 40 times, <|user|> 40 times, <|two words|> 40 times" in notes
    assert about["special_tokens"] == {"<|endoftext|>": 40, "<|user|>": 40, "<|two words|>": 40}


def test_text_that_may_not_contain_any_stays_ordinary(tmp_path: Path) -> None:
    text = "<|user|>hi " * 40
    ids, notes, _ = prepared(tmp_path, text, tokenizer=CHAT, parse_special=False)
    assert ids == list(text.encode())
    (line,) = [note for note in notes if "special" in note]
    assert "<|user|> 40 times, as ordinary characters; --parse_special" in line


def test_the_web_cannot_end_a_text_unless_asked_to(tmp_path: Path) -> None:
    text = "some words <|endoftext|> more words\n" * 40
    ids, notes, _ = prepared(tmp_path, text, tokenizer="byte")
    assert ids == list(text.encode())
    assert any("<|endoftext|> 40 times, as ordinary characters" in note for note in notes)
    ids, _, _ = prepared(tmp_path, text, tokenizer="byte", parse_special=True)
    assert ids.count(256) == 40
    _, notes, _ = prepared(tmp_path, "no marker at all\n" * 40, tokenizer="byte")
    assert not any("special" in note for note in notes)


@pytest.mark.parametrize("chunk", [7, 8, 50])
def test_no_piece_ends_inside_a_special_token(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pieces would be cut at the space of <|two words|>, or anywhere in text without spaces."""
    monkeypatch.setattr("gpt2.data.prepare.CHUNK", chunk)
    text = "ab<|two words|><|user|>" * 30
    ids, _, _ = prepared(tmp_path, text, tokenizer=CHAT)
    assert ids[: len(ids) * 4 // 5] == ([97, 98, TWO_WORDS, USER] * 30)[: len(ids) * 4 // 5]
    ids, _, _ = prepared(tmp_path, "a<|endoftext|>" * 30, tokenizer="byte", parse_special=True)
    assert ids[:40] == [97, 256] * 20


def test_a_separator_that_is_the_models_own_end_becomes_its_token(tmp_path: Path) -> None:
    special = SpecialTokens({"<|endoftext|>": 256, "</s>": 257}, eos=257)
    tokenizer = BPETokenizer(BYTES, GPT2_PATTERN, special=special)
    ids, _, about = prepared(tmp_path, "abc</s>de</s>" * 40, tokenizer=tokenizer, separator="</s>")
    assert ids.count(257) == 80
    assert about["documents"] == 80
    assert sorted(set(ids)) == [*b"abcde", 257]


def test_counts_do_not_depend_on_workers(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"<|user|>question {i}"}) + "\n" for i in range(200))
    (tmp_path / "rows.jsonl").write_text(rows)
    found = []
    for workers in (1, 2):
        out = prepare(tmp_path / "rows.jsonl", out=tmp_path / f"d{workers}", tokenizer=CHAT, workers=workers)
        found.append(json.loads((out / "dataset.json").read_text())["special_tokens"])
        ids = np.concatenate([np.fromfile(out / f"{split}.bin", "<u2") for split in ("train", "val")])
        assert (ids == USER).sum() == 200
    assert found == [{"<|user|>": 200}] * 2
