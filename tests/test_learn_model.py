"""The first chapters of docs/learn, from tokens to the first update of the weights, run in one folder."""

import ast
import codeop
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import Document, blocks
from real_data import SHARED

from gpt2.errors import UserError
from gpt2.tokenizers import gpt2_tokenizer

LEARN = Path(__file__).parent.parent / "docs" / "learn"
SHAKESPEARE = SHARED / "shakespeare" / "input.txt"
PREPARE, TRAIN = "gpt2 prepare shakespeare_char", "gpt2 tokenizer train shakespeare_char"

ON_THE_MODEL = ["03-embeddings", "04-attention", "05-mlp", "06-update"]
"""Chapters that need neither Shakespeare nor GPT-2's vocabulary."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader works through the chapters."""
    return tmp_path_factory.mktemp("learn")


@pytest.fixture
def text_tables(folder: Path, text: str) -> dict[str, dict[str, str]]:
    """What is run for the commands of chapter 1 that download: they take a copy of Shakespeare, or another text."""
    if SHAKESPEARE.is_file():
        path = shlex.quote(str(SHAKESPEARE))
        instead = {PREPARE: f"{PREPARE} --from={path}", TRAIN: f"gpt2 tokenizer train {path}{{rest}}"}
    else:
        (folder / "text.txt").write_text(f"{text}\nROMEO: {text.title()}\n" * 20)
        instead = {
            PREPARE: "gpt2 prepare text.txt --tokenizer=char --out=data/shakespeare_char",
            TRAIN: "gpt2 tokenizer train text.txt --vocab_size=300 --out=bpe512.json",
        }
    try:
        gpt2_tokenizer()
    except UserError:
        return {
            "instead": instead,
            "skipped": {"gpt2 tokenizer encode": "needs GPT-2's vocabulary"},
            "in_python": {'named_tokenizer("gpt2")': 'named_tokenizer("byte")'},
        }
    return {"instead": instead}


def test_the_chapter_on_tokens_prints_what_it_shows(
    folder: Path,
    text_tables: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    gpt2_command: Callable,
) -> None:
    monkeypatch.chdir(folder)
    is_compared = SHAKESPEARE.is_file() and "skipped" not in text_tables
    Document(LEARN / "01-tokens.md", **text_tables, is_compared=is_compared).run(gpt2_command)


def test_the_chapter_on_batches_prints_what_it_shows(
    folder: Path,
    text_tables: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    gpt2_command: Callable,
) -> None:
    monkeypatch.chdir(folder)
    if not Path("data/shakespeare_char").is_dir():
        assert gpt2_command(*shlex.split(text_tables["instead"][PREPARE])[1:])[0] == 0
    Document(LEARN / "02-batch.md", is_compared=SHAKESPEARE.is_file()).run(gpt2_command)


@pytest.mark.parametrize("chapter", ON_THE_MODEL)
def test_a_chapter_on_the_model_prints_what_it_shows(
    chapter: str, folder: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    monkeypatch.chdir(folder)
    Document(LEARN / f"{chapter}.md").run(gpt2_command)


def pasted(block: str) -> list[ast.stmt]:
    """Return the statements that an interactive Python finds in a block that is pasted into it line by line."""
    compile_command, pending, found = codeop.CommandCompiler(), list[str](), list[ast.stmt]()
    for line in [*block.splitlines(), ""]:
        pending.append(line)
        if compile_command("\n".join(pending)) is not None:  # complete; it would be run now
            found += ast.parse("\n".join(pending)).body
            pending.clear()
    assert not pending, f"an interactive Python waits for the end of {pending}"
    return found


@pytest.mark.parametrize("page", sorted(LEARN.glob("[0-9]*.md")), ids=lambda page: page.name)
def test_programs_can_be_pasted_into_an_interactive_python(page: Path) -> None:
    """Before Python 3.13, an empty line ends a statement with a body there, and nothing else does."""
    for language, block, _ in blocks(page.read_text(encoding="utf-8")):
        if language == "python":
            assert [ast.dump(statement) for statement in pasted(block)] == [
                ast.dump(statement) for statement in ast.parse(block).body
            ]


@pytest.mark.parametrize(
    "wrong",
    [
        "def f():\n    a = 1\n\n    return a\n",
        "for i in range(3):\n    print(i)\nprint(4)\n",
        "if a:\n    b = 1\n\nelse:\n    b = 2\n",
    ],
)
def test_programs_that_cannot_be_pasted_are_found(wrong: str) -> None:
    ast.parse(wrong)
    with pytest.raises(SyntaxError):
        pasted(wrong)
