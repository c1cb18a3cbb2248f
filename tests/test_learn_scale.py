"""Chapters 12, 13 and 15 of docs/learn run in their order, as a reader does, on small models and texts."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from documents import Document

from gpt2.data import corpora
from gpt2.files import sha256

LEARN = Path(__file__).parent.parent / "docs" / "learn"
SHORT = "--max_iters=25 --lr_decay_iters=25 --warmup_iters=0 --eval_iters=1"
FEW = f"{SHORT} --n_layer=1 --n_head=2 --n_embd=32 --device=cpu"
RUN = "gpt2 train shakespeare_char_cpu"
BENCH = "gpt2 bench train shakespeare_char_cpu"
CHAPTERS: dict[str, dict[str, Any]] = {
    "12-processes.md": {"instead": {f"{RUN} --nproc=2": f"{RUN} {{rest}} {FEW} --nproc=1"}},
    "13-speed.md": {
        "instead": {
            RUN: f"{{line}} {FEW}",
            BENCH: f"{{line}} {FEW} --steps=2 --compile=False",
            "gpt2 bench sample random:gpt2": "gpt2 bench sample out-speed {rest} --prompt_tokens=2 --new_tokens=3 "
            "--rounds=1",
        },
        "in_python": {"2**25": "2**20"},
    },
    "15-scaling.md": {
        "in_python": {
            '"max_iters": 1000': '"max_iters": 2',
            '"warmup_iters": 50': '"warmup_iters": 0',
            '"eval_iters": 100': '"eval_iters": 1',
            "[8, 16, 32, 64, 128]": "[4, 8, 12, 16, 20]",
        }
    },
}
"""The chapters, and the small commands that are run in place of long ones."""


def test_the_chapters_print_what_they_show(tmp_path: Path, monkeypatch: Any, gpt2_command: Callable) -> None:
    monkeypatch.chdir(tmp_path)
    characters = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    Path("input.txt").write_text(f"{characters}\n" + "But soft, what light through yonder window breaks?\n" * 1000)
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", sha256(Path("input.txt")))
    assert gpt2_command("prepare", "shakespeare_char", "--from=input.txt")[0] == 0
    for name, tables in CHAPTERS.items():
        Document(LEARN / name, **tables).run(gpt2_command)


def test_the_stored_losses_are_of_the_settings_in_the_page() -> None:
    page = (LEARN / "15-scaling.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"^settings = (\{.*?^\})", page, re.MULTILINE | re.DOTALL)
    [widths] = re.findall(r"^widths = (\[.*\])", page, re.MULTILINE)
    stored = json.loads((LEARN / "curves" / "scaling.json").read_text(encoding="utf-8"))
    assert stored["settings"] == ast.literal_eval(settings), "the settings have changed; run the block again"
    assert len(stored["runs"]) == len(ast.literal_eval(widths))
