"""The blocks of the reference pages under docs, and that every page is run by a test."""

import ast
import json
import random
import re
import shlex
import signal
import string
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import BLOCK, Document, commands
from generation.models import random_model
from test_imports import LAYERS

import gpt2
from gpt2.data.prepare import prepare
from gpt2.tokenizers import ByteTokenizer, gpt2_tokenizer

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"
SHAPE = "--block_size=32 --n_layer=1 --n_head=1 --n_embd=32"
QUICK = "--max_iters=2 --warmup_iters=0 --eval_iters=1 --sample_tokens=3 --batch_size=2 --device=cpu --compile=False"
SMALL = f"{SHAPE} {QUICK}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder of a reader, with a text, datasets of it, and the exported model `out`."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("".join(random.Random(0).choices(string.ascii_lowercase + " \n", k=8000)))
    for name in ("mine", "docs", "shakespeare_char"):
        prepare("notes.txt", out=f"data/{name}", tokenizer="byte")
    gpt2.export(random_model(block_size=64), "hf", "out", tokenizer=ByteTokenizer())
    return tmp_path


def ran(gpt2_command: Callable[..., tuple[int, str, str]], *lines: str) -> None:
    """Run what the reader of a page did before."""
    for line in lines:
        status, _, err = gpt2_command(*shlex.split(line))
        assert status == 0, err


def test_the_page_on_data_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    Path("texts").mkdir()
    for n in range(40):
        Path(f"texts/{n}.txt").write_text(f"text {n} " * 30)
    ran(gpt2_command, *(f"prepare texts --part={n}/4 --out=part{n} --tokenizer=byte" for n in (2, 3, 4)))
    Document(
        DOCS / "data.md",
        instead={"gpt2 prepare fineweb-edu": "gpt2 prepare texts {rest} --tokenizer=byte"},
    ).run(gpt2_command)
    ran(gpt2_command, "prepare texts --out=whole --tokenizer=byte")
    for name in ("train.bin", "val.bin"):
        assert Path(f"data/fineweb-edu/{name}").read_bytes() == Path(f"whole/{name}").read_bytes()


def test_the_page_on_several_processes_prints_what_it_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    messages = ""

    def started(*arguments: str) -> tuple[int, str, str]:
        nonlocal messages
        monkeypatch.setattr("sys.argv", ["gpt2", *arguments])  # which each process of --nproc gets
        status, out, err = gpt2_command(*arguments)
        messages += err
        return status, out, err

    Document(
        DOCS / "distributed.md",
        skipped={"torchrun": "needs 8 GPUs; tests/distributed starts runs with torchrun"},
        instead={
            "gpt2 train gpt2": f"gpt2 train {{rest}} --dataset=mine {SMALL} --nproc=1",
            "gpt2 train shakespeare_char": f"{{line}} {SMALL.replace('--batch_size=2 ', '')} --max_iters=1",
        },
    ).run(started)
    assert "batch_size 64 × 1 is split into batch_size 32 × 2" in messages  # as the comment in the page says


def test_the_page_on_evaluation_prints_what_it_shows(
    folder: Path, gpt2_vocabulary: None, gpt2_command: Callable
) -> None:
    gpt2.export(
        gpt2.GPT(gpt2.GPTConfig(n_layer=1, n_head=1, n_embd=4)), "safetensors", "hub", tokenizer=gpt2_tokenizer()
    )  # stands for OpenAI's model on Hugging Face's hub
    task = {"ctx_a": "A cat", "ctx_b": "it", "ctx": "A cat it", "endings": ["runs", "sits", "is", "was"], "label": 1}
    task |= {"activity_label": "Cats", "split_type": "indomain", "ind": 1}
    Path("hellaswag_val.jsonl").write_text(f"{json.dumps(task)}\n" * 3)
    Document(
        DOCS / "evaluation.md",
        instead={
            "gpt2 eval hellaswag gpt2": "gpt2 eval hellaswag hub {rest} --data=hellaswag_val.jsonl",
            "gpt2 eval hellaswag --write_bin=dev/data/hellaswag/hellaswag_val.bin": "{line} "
            "--data=hellaswag_val.jsonl",
            "gpt2 eval hellaswag out --rendering=lm-eval": "{line} --data=hellaswag_val.jsonl",
            "gpt2 eval loss out data/mine --tokens=100000 --stride=256": "gpt2 eval loss out data/mine {rest} "
            "--tokens=300 --stride=16",
        },
    ).run(gpt2_command)


def test_the_page_on_experiments_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    Document(
        DOCS / "experiments.md",
        instead={
            "gpt2 sweep shakespeare_char_cpu_fast": f"{{line}} {SMALL} --seeds=1 --max_iters=1",
            "gpt2 sweep tinystories": f"{{line}} {SMALL} --eval_iters=1 --max_iters=1 --out=sweep-tinystories",
        },
    ).run(gpt2_command)


def test_the_page_on_formats_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    pytest.importorskip("transformers")
    nanogpt = "path/to/nanoGPT"
    ran(
        gpt2_command,
        f"prepare notes.txt --tokenizer=char --format=nanogpt --out={nanogpt}/data/shakespeare_char",
        f"train {SMALL} --dataset={nanogpt}/data/shakespeare_char --out_dir=of-nanogpt",
        f"export nanogpt of-nanogpt {nanogpt}/out-shakespeare-char",
    )
    Path("out").rename("exported")
    Document(
        DOCS / "formats.md",
        instead={
            "gpt2 train --init_from=resume": f"{{line}} {QUICK} --max_iters=4",
            "gpt2 validate gpt2": "gpt2 validate exported",
        },
    ).run(gpt2_command)


def test_the_page_on_generation_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    Document(
        DOCS / "generation.md",
        instead={
            "gpt2 sample out": "{line} --max_new_tokens=9",
            "gpt2 bench sample random:gpt2": "gpt2 bench sample out {rest} --batch_size 1 2 --prompt_tokens=2 "
            "--new_tokens=3 --rounds=1",
        },
        in_python={"seed=7": "seed=7, max_new_tokens=40"},
    ).run(gpt2_command)


def test_the_page_on_records_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    ran(gpt2_command, *(f"train {SMALL} --dataset=mine --out_dir=out-{name}" for name in "ab"))
    Document(
        DOCS / "records.md",
        skipped={"gpt2 report out-a --serve": "serves until it is interrupted; runs below"},
        instead={"gpt2 train shakespeare_char_cpu": f"{{line}} {SMALL}"},
    ).run(gpt2_command)
    command = [sys.executable, "-m", "gpt2", "report", "out-a", "--serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = re.search(r"out-a: (http://127\.0\.0\.1:\d+\S*) until Ctrl-C", process.stderr.readline())
        try:
            assert address
            with urllib.request.urlopen(address[1]) as page:
                assert b"<html" in page.read()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_the_page_on_speed_prints_what_it_shows(folder: Path, gpt2_command: Callable) -> None:
    small = f"{SMALL} --total_batch_size=64"
    Document(
        DOCS / "speed.md",
        skipped={"gpt2 bench serve": "needs a server; the page on serving, which has one, runs it"},
        instead={
            "gpt2 bench train gpt2": f"{{line}} {small} --steps=2",
            "gpt2 bench sample random:gpt2": "gpt2 bench sample out --prompt_tokens=2 --new_tokens=3 --rounds=1",
            "gpt2 bench data data/shakespeare": "gpt2 bench data data/mine",
            "gpt2 plan gpt2": f"{{line}} {small}",
            "gpt2 plan gpt2 --gpu=H100": "{line}",
        },
    ).run(gpt2_command)


def test_every_page_with_blocks_is_run_by_a_test() -> None:
    """A page counts as run if a test module that uses `Document` has its name in its code.

    The tests of the course also name chapters without `.md`, such as `03-embeddings`.
    """
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert missing_pages(pages, TESTS) == []


def missing_pages(pages: list[Path], tests: Path) -> list[str]:
    """Return the names of the pages that have blocks and that no test module runs."""
    named = set()
    for module in tests.rglob("test_*.py"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        if "Document" in imported:
            named |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    with_blocks = [page for page in pages if BLOCK.search(page.read_text(encoding="utf-8"))]
    return [
        page.name
        for page in with_blocks
        if page.name not in named and not (page.parent.name == "learn" and page.stem in named)
    ]


def test_a_page_that_no_test_runs_is_found(tmp_path: Path) -> None:
    for name in ("run", "new", "mentioned"):
        (tmp_path / f"{name}.md").write_text('```sh title="needs a GPU"\nnvidia-smi\n```\n')
    (tmp_path / "text.md").write_text("A page without blocks.\n")
    (tmp_path / "test_run.py").write_text('from documents import Document\nDocument(DOCS / "run.md")\n')
    (tmp_path / "test_links.py").write_text('"mentioned.md"\n')
    (tmp_path / "data.md").write_text("```python\nprint(1)\n```\n")
    (tmp_path / "test_data.py").write_text('from documents import Document\nDocument("run.md")\nfolder = "data"\n')
    assert missing_pages(sorted(tmp_path.glob("*.md")), tmp_path) == ["data.md", "mentioned.md", "new.md"]


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        ('toml\nmodel = "d6"\n', None),
        ("toml\nmodel = d6\n", "Invalid value"),
        ('json\n{"loss": 3.5, "step": 2}\n', None),
        ("json\n{'loss': 3.5}\n", "Expecting property name"),
    ],
)
def test_blocks_of_data_have_to_be_valid(
    block: str, wrong: str | None, tmp_path: Path, gpt2_command: Callable
) -> None:
    (tmp_path / "page.md").write_text(f"```{block}```\n")
    if wrong is None:
        Document(tmp_path / "page.md").run(gpt2_command)
        return
    with pytest.raises(ValueError, match=wrong):
        Document(tmp_path / "page.md").run(gpt2_command)


def programs() -> list[list[str]]:
    """Return the words of every command in a page that starts a program of this repository."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    blocks = [block for page in pages for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    lines = {shlex.join(words) for language, _, block in blocks if language == "sh" for words in commands(block)}
    return [
        words
        for line in sorted(lines)
        if re.search(r"\b(benchmarks|tests|docs)/", line)
        for words in [shlex.split(line)]
    ]


@pytest.mark.parametrize("words", programs(), ids=" ".join)
def test_the_programs_of_pages_exist_and_have_their_options(words: list[str]) -> None:
    """The blocks that need other programs or hours are not run, but their files and options are looked up."""
    paths = [ROOT / word for word in words if re.match(r"(benchmarks|tests|docs)/", word)]
    assert [path for path in paths if not path.exists()] == []
    if paths[0].parent.name == "benchmarks" and paths[0].suffix == ".py":
        source = paths[0].read_text(encoding="utf-8")
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        names = {option for option in options if f'"{option}"' not in source and f'"{option[2:]}"' not in source}
        assert names == set(), f"{paths[0].name} has no such options"


def test_the_table_of_contributing_has_every_package_in_its_layer() -> None:
    """The table says where things are; `test_imports.py` checks the layers themselves."""
    table = re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = [set() for _ in LAYERS]
    for number, names in table:
        named[int(number)] |= {name.strip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", names)}
    assert named == LAYERS


@pytest.mark.parametrize("name", ["document_mask", "random_starts"])
def test_the_docstrings_to_imitate_are_those_of_the_code(name: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    (after,) = [text.split(f"\ndef {name}(")[1] for text in texts if f"\ndef {name}(" in text]
    docstring = after.split('"""')[1]
    assert f'"""{docstring}"""' in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
