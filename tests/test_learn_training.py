"""Chapters 7 to 11 and 14 of docs/learn run in their order, as a reader does, on small models and texts."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documents import Document, blocks, commands
from real_data import SHARED

from gpt2.bench.sweep import parse_grid, value_of
from gpt2.data import corpora
from gpt2.files import sha256
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import load_recipe

LEARN = Path(__file__).parent.parent / "docs" / "learn"
SHAKESPEARE = SHARED / "shakespeare" / "input.txt"
QUICK = "--batch_size=2 --eval_iters=1 --device=cpu --dtype=float32 --sample_tokens=5"
SHAPE = "--n_layer=1 --n_head=2 --n_embd=32"
FEW = f"{QUICK} --max_iters=5 --warmup_iters=0"
RUN = "gpt2 train shakespeare_char_cpu"
CHAPTERS: dict[str, dict[str, Any]] = {
    "07-training.md": {
        "instead": {
            f"{RUN} --max_iters=1000": f"{RUN} {{rest}} {FEW} {SHAPE} --max_iters=40",
            f"{RUN} --out_dir=out-whole": f"{{line}} {FEW} {SHAPE} --max_iters=4 --lr_decay_iters=4",
            f"{RUN} --out_dir=out-parts": f"{{line}} {FEW} {SHAPE} --max_iters=2 --lr_decay_iters=4",
            "gpt2 train --init_from=resume --out_dir=out-parts": "{line} --max_iters=4",
            f"{RUN} --nproc=2": f"{RUN} --nproc=1 {{rest}} {FEW} {SHAPE} --max_iters=4 --lr_decay_iters=4",
        },
    },
    "08-sampling.md": {},
    "09-finetuning.md": {
        "instead": {
            f"{RUN} --init_from=out-shakespeare-char --dataset=data/reference": f"{{line}} {FEW} {SHAPE}",
            f"{RUN} --dataset=data/reference": f"{{line}} {FEW} {SHAPE}",
            "gpt2 sweep shakespeare_char_cpu": f"{{line}} {FEW} {SHAPE} --max_iters=1",
            f"{RUN} --init_from=out-shakespeare-char --dataset=data/small": f"{{line}} {FEW} {SHAPE}",
        },
        "in_python": {
            "[:400_000]": "[:20_000]",
            "[200_000:200_300]": "[10_000:10_300]",
            "dataset).loss": "dataset, tokens=2000).loss",
        },
    },
    "10-evaluation.md": {
        "instead": {
            RUN: f"{{line}} {FEW} {SHAPE}",
            "gpt2 sweep shakespeare_char_cpu": f"{{line}} {FEW} {SHAPE} --max_iters=1",
        },
        "in_python": {"n = 1000": "n = 100"},
    },
    "11-memory.md": {"instead": {"gpt2 plan gpt2": "{line}"}},
    "14-exactness.md": {
        "instead": {
            RUN: f"{{line}} {FEW} {SHAPE} --max_iters=4 --lr_decay_iters=4",
            f"{RUN} --out_dir=out-stopped": f"{{line}} {FEW} {SHAPE} --max_iters=2 --lr_decay_iters=4",
            "gpt2 train --init_from=resume --out_dir=out-stopped": "{line} --max_iters=4",
            f"{RUN} --out_dir=out-two-exact": f"{{line}} {FEW} {SHAPE} --max_iters=4 --lr_decay_iters=4 --nproc=1",
        },
    },
}
"""The chapters in their order, and the small commands that are run in place of long ones."""


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder for the chapters; return Shakespeare, or a stand-in with the same characters."""
    monkeypatch.chdir(tmp_path)
    if SHAKESPEARE.is_file():
        return SHAKESPEARE
    characters = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    lines = "ROMEO:\nBut soft, what light through yonder window breaks? It is the east\n\n" * 10_000
    path = tmp_path / "input.txt"
    path.write_text(f"{characters}\n{lines}")
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", sha256(path))
    return path


def test_the_chapters_print_what_they_show(text: Path, gpt2_command: Callable) -> None:
    assert gpt2_command("prepare", "shakespeare_char", f"--from={text}")[0] == 0
    for name, tables in CHAPTERS.items():
        instead = tables.get("instead", {}) | prepared_from(name, text)
        Document(LEARN / name, **{**tables, "instead": instead, "is_compared": text == SHAKESPEARE}).run(gpt2_command)


def prepared_from(chapter: str, text: Path) -> dict[str, str]:
    """Return the entries that make each `gpt2 prepare shakespeare_char` of a chapter read a file."""
    page = (LEARN / chapter).read_text(encoding="utf-8")
    is_needed = "gpt2 prepare shakespeare_char --" in page
    return {"gpt2 prepare shakespeare_char": f"{{line}} --from={text}"} if is_needed else {}


def settings_of(command: list[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return the resolved settings of a `gpt2 train` or `gpt2 sweep` of a recipe, and the values of its grid."""
    recipe, flags, grid = command[2], dict[str, Any](), list[str]()
    for before, word in itertools.pairwise(command[2:]):
        if before == "--grid":
            grid.append(word)
        elif word not in ("--grid",) and not word.startswith(("--seeds=", "--out=")):
            name, _, value = word.removeprefix("--").partition("=")
            flags[name] = value_of(name, value)
    return TrainConfig(**{**load_recipe(recipe), **flags}).resolved().as_dict(), (parse_grid(grid) if grid else {})


@pytest.mark.parametrize(
    ("name", "chapter", "begin"),
    [
        ("training", "07-training.md", f"{RUN} --max_iters=1000"),
        ("logits", "07-training.md", f"{RUN} --max_iters=1000"),
        ("overfitting", "09-finetuning.md", f"{RUN} --init_from=out-shakespeare-char --dataset=data/small"),
        ("seeds", "10-evaluation.md", "gpt2 sweep shakespeare_char_cpu"),
    ],
)
def test_the_stored_curves_are_of_the_commands_in_the_page(name: str, chapter: str, begin: str) -> None:
    page = (LEARN / chapter).read_text(encoding="utf-8")
    lines = [words for kind, block, _ in blocks(page) if kind == "sh" for words in commands(block)]
    [command] = [words for words in lines if " ".join(words).startswith(begin)]
    settings, grid = settings_of(command)
    stored = json.loads((LEARN / "curves" / f"{name}.json").read_text(encoding="utf-8"))
    runs = [stored] if name == "logits" else list(stored.values())
    for run in runs:
        found = run["settings"]
        varied = {"seed", *grid} if grid else set()
        differing = {k for k in found.keys() & settings.keys() - varied - {"vocab_size"} if found[k] != settings[k]}
        assert differing == set(), f"the command of {chapter} has changed; run it, and store its curves again"
    for varied, values in grid.items():
        assert sorted(run["settings"][varied] for run in runs) == sorted(3 * values)
