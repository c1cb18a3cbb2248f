"""The recipes of docs/how-do-i.md run as small runs, and what docs/comparison.md claims of this program is there."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import Document

import gpt2
from gpt2.tokenizers import gpt2_tokenizer

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
QUICK = "--max_iters=2 --warmup_iters=0 --eval_iters=1 --sample_tokens=3 --batch_size=2 --device=cpu --compile=False"
SMALL = f"--block_size=32 --n_layer=1 --n_head=1 --n_embd=32 {QUICK}"
SMALL_PYTHON = (
    "n_layer=1, n_head=1, n_embd=32, block_size=32, max_iters=2, batch_size=2, eval_iters=1, compile=False, "
    "device='cpu'"
)
GERMAN = "Die Sonne scheint über die Dächer. Der Käse liegt auf dem Tisch, und Äpfel fallen vom Baum.\n\n"
CHAT = (
    '{"messages": [{"role": "user", "content": "How are you?"}, '
    '{"role": "assistant", "content": "I am well, and you?"}]}\n'
)
PROGRAMS = 7  # columns of the tables of docs/comparison.md that compare programs
LLMC_LOG = "s:0 tel:11.0214\ns:0 trl:10.9874 lr:0.000001 norm:15.34\ns:1 trl:10.8000 lr:0.000002 norm:14.10\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable, gpt2_vocabulary: None) -> Path:
    """Make the folder of a user: texts, a nanoGPT checkout, a log of llm.c, and `hub`, in place of OpenAI's model."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/deutsch.txt").write_text(GERMAN * 200, encoding="utf-8")
    Path("notes.txt").write_text("some words of a text\n" * 100)
    Path("chats.jsonl").write_text(CHAT * 100)
    log = Path("path/to/llm.c/log124M/main.log")
    log.parent.mkdir(parents=True)
    log.write_text(LLMC_LOG)
    config = gpt2.GPTConfig(block_size=32, n_layer=1, n_head=1, n_embd=4)
    gpt2.export(gpt2.GPT(config), "hf", "hub", tokenizer=gpt2_tokenizer())
    nanogpt = Path("path/to/nanoGPT")
    chars = nanogpt / "data/shakespeare_char"
    for line in (
        f"prepare notes.txt --tokenizer=char --format=nanogpt --out={chars}",
        f"train {SMALL} --dataset={chars} --out_dir=of-nanogpt --max_iters=1",
        f"export nanogpt of-nanogpt {nanogpt}/out-shakespeare-char",
    ):
        status, _, err = gpt2_command(*shlex.split(line))
        assert status == 0, err
    return tmp_path


def test_the_recipes_run(home: Path, gpt2_command: Callable) -> None:
    resumed = f"{{line}} {QUICK} --max_iters"
    small = f"{{line}} {SMALL}"
    Document(
        DOCS / "how-do-i.md",
        skipped={"gpt2 doctor": "measures the machine; tests/doctor runs it"},
        instead={
            "gpt2 tokenizer train texts/": "{line} --vocab_size=300",
            "gpt2 train own_text": small,
            "gpt2 train own_text --dataset=mine --out_dir=out-two": f"{small} --nproc=1",
            "gpt2 train own_text --dataset=mine --out_dir=out-stop": f"{small} --eval_interval=1",
            "gpt2 sweep own_text": f"{small} --seeds=1 --max_iters=1",
            "gpt2 plan own_text": "{line}",
            "gpt2 plan gpt2": "{line}",
            "gpt2 train --init_from=resume --out_dir=out-mine --max_iters=4000": f"{resumed}=3",
            "gpt2 train --init_from=resume --out_dir=out-mine --dataset=data/mine": f"{resumed}=4",
            "gpt2 train --init_from=resume --out_dir=out-mine --max_iters=8000": f"{resumed}=5",
            "gpt2 train --init_from=resume --out_dir=out-imported": f"{resumed}=2",
            "gpt2 train out-mine/config.toml": f"{{line}} {QUICK}",
            "gpt2 prepare notes.txt --tokenizer=gpt2": "gpt2 prepare notes.txt --tokenizer=hub {rest}",
            "gpt2 train --init_from=gpt2": f"gpt2 train --init_from=hub {{rest}} --block_size=32 {QUICK}",
            "gpt2 sample out-mine": "{line} --max_new_tokens=3",
            "gpt2 sample out-chat": "{line} --max_new_tokens=3",
        },
        in_python={
            'model="d6", block_size=256, max_iters=1000': SMALL_PYTHON,
            "n_layer=6, n_head=6, n_embd=384": "n_layer=1, n_head=1, n_embd=32",
            'out_dir="out-silu", block_size=256, max_iters=1000': 'out_dir="out-silu", block_size=256, max_iters=2, '
            'batch_size=1, eval_iters=1, device="cpu", compile=False',
        },
    ).run(gpt2_command)


def test_the_commands_of_the_comparison_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    Document(DOCS / "comparison.md", instead={"gpt2 plan --gpu=list": "{line}"}).run(gpt2_command)
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    named = {re.match(r"(?:eval |tokenizer |bench )?[a-z]+", words) for words in re.findall(r"`gpt2 ([^`]+)`", text)}
    for command in sorted(match[0] for match in named if match):
        status, out, err = gpt2_command(*command.split(), "--help")
        assert status == 0 and f"Usage: gpt2 {command}" in out, f"gpt2 {command}: {err}"


def test_each_cell_on_this_program_links_to_a_test_or_names_a_command() -> None:
    text = (DOCS / "comparison.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    cells = [row[1] for row in rows if len(row) == PROGRAMS + 1]
    assert len(cells) > 30
    for cell in cells:
        assert cell == "gpt2" or "](../tests/" in cell or "`gpt2 " in cell, cell
