"""What `gpt2 inspect` counts, against counts made by hand."""

import json
from pathlib import Path

import pytest
from test_shards import save_bare, save_llmc, save_npy

from gpt2.data import inspect as inspecting
from gpt2.data.dataset import Dataset
from gpt2.data.inspect import inspect
from gpt2.data.shards import Tokens, open_shard
from gpt2.errors import UserError
from gpt2.reporting.dataset_page import page
from gpt2.tokenizers import ByteTokenizer, CharTokenizer

EOT = 256


def made_of(folder: Path, save, train: list[int], val: list[int], tokenizer=None) -> Dataset:
    tokenizer = tokenizer or ByteTokenizer()
    splits = {
        name: Tokens([open_shard(save(folder / f"x_{name}_0", ids))], tokenizer.vocab_size)
        for name, ids in (("train", train), ("val", val))
    }
    return Dataset(folder, splits, tokenizer, {})


def tokens_of(documents: list[str], first: bool) -> list[int]:
    """End-of-text before each document, as llm.c has it, or after each, as nanoGPT."""
    pieces = [[EOT, *d.encode()] if first else [*d.encode(), EOT] for d in documents]
    return [token for piece in pieces for token in piece]


@pytest.mark.parametrize("stretch", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("save", [save_bare, save_llmc, save_npy])
def test_documents_are_counted_wherever_end_of_text_stands(
    save, first: bool, stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspecting, "STRETCH", stretch)
    train = tokens_of(["abc", "de", "abc", "fghijk", "abc"], first)
    report = inspect(made_of(tmp_path, save, train, tokens_of(["xyz", "de"], first)))
    split = report.splits["train"]
    assert (split.tokens, split.documents, split.duplicates) == (22, 5, 2)
    spread = {"shortest": 2, "p10": 2.4, "median": 3, "p90": 4.8, "longest": 6, "mean": 3.4}
    assert split.tokens_per_document == pytest.approx(spread)
    assert split.eot_rate == pytest.approx(5 / 22)
    assert (split.largest_id, split.unused_ids) == (EOT, 257 - 12)
    assert report.splits["val"].duplicates == 0
    assert report.overlap == 1


def test_without_end_of_text_blocks_are_compared(tmp_path: Path) -> None:
    letters = CharTokenizer("abcdefgh")
    block = [i % 8 for i in range(64)]
    other = [(i * i) % 8 for i in range(64)]
    report = inspect(made_of(tmp_path, save_bare, block + other + block + [0] * 10, other, letters))
    split = report.splits["train"]
    assert (split.documents, split.tokens_per_document, split.eot_rate) == (None, {}, 0.0)
    assert (split.duplicates, report.overlap) == (1, 1)
    assert len(split.excerpts) == 10
    assert split.excerpts[0] == "abcdefgh" * 6


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="token id 300, but the vocabulary has 257"):
        inspect(made_of(tmp_path, save_bare, [1, 2, 300], [1]))


def test_the_page_holds_everything_and_lets_no_markup_in(tmp_path: Path) -> None:
    made = page(inspect(made_of(tmp_path, save_bare, tokens_of(["<script>alert(1)</script>"] * 3, False), [1, 2, 3])))
    assert made.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in made
    assert made.count('<path class="train s') == 3  # lengths of train's documents, and the use of ids in both splits
    assert "http:" not in made
    assert "https:" not in made


def test_the_command(dataset: Path, tmp_path: Path, gpt2_command) -> None:
    status, out, err = gpt2_command("inspect", dataset, f"--html={tmp_path / 'page.html'}")
    assert status == 0, err
    assert "18,185 tokens in 1 file (nanogpt uint16)" in out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    values = json.loads(gpt2_command("inspect", dataset, "--json")[1])
    assert values["splits"]["train"]["tokens"] == 18_185
    assert values["tokenizer"] == "char"
    status, _, err = gpt2_command("inspect", tmp_path)
    assert status == 2
    assert "holds no dataset" in err
