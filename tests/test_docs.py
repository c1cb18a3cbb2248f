"""The pages under docs whose blocks run, and the pictures that a program draws."""

import runpy
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import Document
from generation.models import random_model

import gpt2
from gpt2.tokenizers import ByteTokenizer, gpt2_tokenizer

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_vocabulary: None) -> None:
    """Make the file `hub`, which stands for OpenAI's model on Hugging Face's hub."""
    monkeypatch.chdir(tmp_path)
    gpt2.export(
        gpt2.GPT(gpt2.GPTConfig(n_layer=1, n_head=1, n_embd=4)), "safetensors", "hub", tokenizer=gpt2_tokenizer()
    )


def test_the_page_on_the_architecture_prints_what_it_shows(hub: None, gpt2_command: Callable) -> None:
    Document(
        DOCS / "architecture.md",
        skipped={"python docs/pictures": "overwrites the pictures, which the test below compares"},
        instead={"gpt2 sample gpt2": "gpt2 sample hub {rest}"},
        in_python={'gpt2.load("gpt2")': 'gpt2.load("hub")'},
    ).run(gpt2_command)


def test_the_page_on_serving_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    gpt2.export(random_model(block_size=64), "hf", "out-shakespeare-char", tokenizer=ByteTokenizer())
    Path("notes.txt").write_text("some words of a text\n")
    measure, small = "gpt2 bench serve http://127.0.0.1:8000", "--prompt_tokens 2 9 --new_tokens 2 5 --vocab_size=200"
    Document(
        DOCS / "serving.md",
        skipped={
            "lm_eval": "needs lm-eval; tests/serve/test_lm_eval.py runs it",
            "python docs/page_picture.py": "needs a browser; tests/serve/test_page.py uses the page",
        },
        instead={
            f"{measure} --rate=2 --requests=200": f"{measure} --rate=50 --requests=3{{rest}} {small}",
            f"{measure} --concurrency=16 --seconds=60": f"{measure} --concurrency=2 --seconds=0.3{{rest}} {small}",
        },
        in_python={"max_tokens=50": "max_tokens=5"},
    ).run(gpt2_command)


def test_the_page_on_gpus_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    Document(
        DOCS / "gpus.md",
        skipped={"gpt2 train gpt2": "takes a GPU and days"},
        instead={
            "gpt2 plan gpt2": "{line}",
            "gpt2 plan gpt2-medium": "{line}",
            "gpt2 plan gpt2-xl": "{line}",
            "gpt2 plan finetune_shakespeare_small": "{line}",
        },
    ).run(gpt2_command)


def test_the_pictures_are_those_that_the_program_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "pictures")
    drawn = runpy.run_path(str(DOCS / "pictures"), run_name="pictures")["PICTURES"]
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for name, draw in drawn.items():
        picture = draw().svg()
        ET.fromstring(picture)
        shown = (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8")
        assert shown == picture, "run python docs/pictures"
        assert f"images/{name}.svg" in pages


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n", None),
        ("```python\nprint(1 + 1)\n```\n\nSo it is.\n", None),
        ("```python\nx = 3\n```\n\n```python\nprint(x)\n```\n```text\n3\n```\n", None),
        ("```sh\ngpt2 --version\n```\n\n```text\n0.0\n```\n", "the document shows"),
        ("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "the document shows"),
        ("```python\nprint(1 + 1)\n```\n\nIt prints:\n\n```text\n2\n```\n", "which nothing runs"),
        ('```python\nprint(0.985, 101)\n```\n\n```text title="within 2 %"\n1.00  100\n```\n', None),
        ('```python\nprint(0.98, 103)\n```\n\n```text title="within 2 %"\n1.00  100\n```\n', "the document shows"),
        ("```python\nprint('loss', 1)\n```\n\n```text title=\"within 2 %\"\nlos 1\n```\n", "the document shows"),
        ('```python\nprint(1)\n```\n\n```text title="for example"\n2\n```\n', None),
        ('```python\nprint(1)\n```\n\n```text title="perhaps"\n2\n```\n', "the title of an output is"),
        ('```sh title="needs a GPU"\nnvidia-smi\n```\n', None),
        ("```ruby\nputs 2\n```\n", "which nothing runs"),
        ("```sh\ngpt2 no-such-command\n```\n", "Unknown command"),
    ],
)
def test_an_output_that_a_document_shows_is_compared(
    text: str, wrong: str | None, tmp_path: Path, gpt2_command: Callable
) -> None:
    (tmp_path / "page.md").write_text(text)
    if wrong is None:
        Document(tmp_path / "page.md").run(gpt2_command)
        return
    with pytest.raises(AssertionError, match=wrong):
        Document(tmp_path / "page.md").run(gpt2_command)


def test_outputs_can_be_updated(tmp_path: Path, gpt2_command: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    program = "```python\nprint({0})\n```\n\n```text\n{1}```\n"
    page.write_text(
        "".join(program.format(n, shown) for n, shown in ((1, ""), (2, "2\n"), (3, "2\n"))) + "The end.\n"
    )
    monkeypatch.setenv("GPT2_TEST_UPDATE", "1")
    with pytest.raises(AssertionError, match="the document shows"):
        Document(page).run(gpt2_command)
    assert page.read_text() == "".join(program.format(n, f"{n}\n") for n in (1, 2, 3)) + "The end.\n"
    Document(page).run(gpt2_command)
