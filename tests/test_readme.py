"""README's commands and programs, and those of the pages that go on from it, run in their order on small models.

`documents.py` reads the blocks. A command that would take a network, a GPU or hours has an entry in `INSTEAD`, which
makes it small. Any other runs unchanged.
"""

import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import Document

from gpt2.data import corpora
from gpt2.files import sha256

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

SKIPPED = {
    "make": "sets up an environment and runs all tests",
    "python3 -m venv": "makes an environment",
    ".venv/bin/pip": "installs packages",
    ".venv/bin/gpt2 demo": "trains for minutes; `gpt2 demo --smoke` has its own test",
}
"""The first words of commands that are not run here, and why."""
SKIPPED_OF_TRAINING = {"GPT2_TEST_KILLS=20": "runs tests", "GPT2_TEST_ENDS=200": "runs tests"}
QUICK = "--max_iters=2 --warmup_iters=0 --eval_iters=1 --sample_tokens=3 --batch_size=2 --device=cpu --compile=False"
SMALL = f"--block_size=32 --n_layer=1 --n_head=1 --n_embd=32 {QUICK}"
INSTEAD = {
    "gpt2 prepare shakespeare_char": "{line} --from=romeo.txt",
    "gpt2 train shakespeare_char_cpu": f"{{line}} {SMALL}",
    "gpt2 train own_text": f"{{line}} {SMALL}",
    "gpt2 train --init_from=resume --out_dir=out-shakespeare-char": "{line}",
    "gpt2 sample gpt2": "gpt2 sample hub {rest} --max_new_tokens=3",
    "gpt2 eval hellaswag gpt2": "gpt2 eval hellaswag hub {rest} --data=tasks.jsonl",
    "gpt2 lens out-shakespeare-char 'ROMEO: O, speak again'": "gpt2 lens out-shakespeare-char ROMEO: {rest}",
    "gpt2 prepare notes.txt papers/ --tokenizer=gpt2": "gpt2 prepare notes.txt papers/ --tokenizer=hub {rest}",
    "gpt2 train --init_from=gpt2": f"gpt2 train --init_from=hub {{rest}} --block_size=32 {QUICK}",
    "gpt2 plan gpt2 --gpu=H100": "{line}",
    "gpt2 train gpt2 --nproc=auto": f"{{line}} {SMALL} --nproc=1 --dataset=mine --total_batch_size=64 "
    "--hellaswag_interval=0",
    "gpt2 bench train gpt2": f"{{line}} {SMALL} --steps=2 --total_batch_size=64",
    "gpt2 bench sample random:gpt2": "gpt2 bench sample hub {rest} --prompt_tokens=2 --new_tokens=3 --rounds=1",
}
"""The small commands that are run; the folder `hub` stands for OpenAI's model on Hugging Face's hub."""
INSTEAD_OF_TRAINING = {
    "gpt2 train gpt2 --model=d6 --print_config": "{line}",
    "gpt2 train shakespeare_char_cpu_fast": f"{{line}} {SMALL}",
    "gpt2 train path/to/nanoGPT/config/train_shakespeare_char.py": f"{{line}} {SMALL}",
    "gpt2 sweep shakespeare_char_cpu": f"{{line}} {SMALL} --seeds=1 --max_iters=1",
    "gpt2 train --init_from=resume --out_dir=out-shakespeare-char": "{line}",
    "gpt2 train shakespeare_char_cpu --init_from=auto": "{line} --max_iters=3",
}
IN_PYTHON = {"max_new_tokens=100": "max_new_tokens=3"}
"""Pieces of README's Python programs, and what is run for them."""
QUICK_PYTHON = 'max_iters=2, batch_size=2, eval_iters=1, device="cpu", compile=False'
IN_PYTHON_OF_LIBRARY = IN_PYTHON | {
    'model="d6", block_size=256, max_iters=1000': f"n_layer=1, n_head=1, n_embd=32, block_size=32, {QUICK_PYTHON}",
    "max_iters=2000": "max_iters=3",
    "n_layer=6, n_head=6, n_embd=384": "n_layer=1, n_head=1, n_embd=32",
    'out_dir="out-relu", block_size=256, max_iters=1000': f'out_dir="out-relu", block_size=256, {QUICK_PYTHON}',
    "block_size=block_size, max_iters=200": f"block_size=block_size, {QUICK_PYTHON}",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command: Callable) -> Path:
    """Make the folder of a new user, with the texts, the nanoGPT checkout and the model that README presumes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("ROMEO:\n"))  # what the user says to --interactive
    shutil.copy(README, "notes.txt")
    shutil.copytree(ROOT / "docs", "papers", ignore=shutil.ignore_patterns("images"))
    Path("romeo.txt").write_text("ROMEO:\nBut soft, what light through yonder window breaks? speak again\n\n" * 200)
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", sha256(Path("romeo.txt")))
    task = {"ctx_a": "A cat", "ctx_b": "it", "ctx": "A cat it", "endings": ["runs", "sits", "is", "was"], "label": 1}
    Path("tasks.jsonl").write_text(json.dumps(task | {"activity_label": "Cats"}) + "\n")
    nanogpt = Path("path/to/nanoGPT")
    (nanogpt / "config").mkdir(parents=True)
    (nanogpt / "config/train_shakespeare_char.py").write_text(
        "out_dir = 'out-shakespeare-char'\ndataset = 'shakespeare_char'\nalways_save_checkpoint = False\n"
    )
    chars = nanogpt / "data/shakespeare_char"
    for line in (
        f"prepare romeo.txt --tokenizer=char --format=nanogpt --out={chars}",
        f"train {SMALL} --dataset={chars} --out_dir=of-nanogpt --max_iters=1",
        f"export nanogpt of-nanogpt {nanogpt}/out-shakespeare-char",
        "prepare notes.txt --tokenizer=bpe --vocab_size=300 --out=of-hub-data",
        f"train {SMALL} --dataset=of-hub-data --out_dir=of-hub --max_iters=1",
        "export hf of-hub hub",
    ):
        status, _, err = gpt2_command(*shlex.split(line))
        assert status == 0, err
    return tmp_path


def test_readme_and_its_next_pages_work_line_by_line(home: Path, gpt2_command: Callable) -> None:
    pages = [
        Document(README, SKIPPED, INSTEAD, IN_PYTHON),
        Document(ROOT / "docs" / "training.md", SKIPPED_OF_TRAINING, INSTEAD_OF_TRAINING),
        Document(ROOT / "docs" / "library.md", in_python=IN_PYTHON_OF_LIBRARY),
    ]
    for page in pages:
        page.run(gpt2_command)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("npm install gpt2", "is no gpt2 command"),
        ("gpt2 train gpt2-xl", "may take hours"),
        ("gpt2 sweep tinystories --grid seed=1,2 --out=s", "may take hours"),
    ],
)
def test_a_new_command_of_readme_needs_an_entry_if_it_cannot_run(line: str, wrong: str) -> None:
    with pytest.raises(AssertionError, match=wrong):
        Document(README, SKIPPED, INSTEAD).small_command(line.split())
    assert Document(README, SKIPPED, INSTEAD).small_command(["gpt2", "list"]) == ["gpt2", "list"]
