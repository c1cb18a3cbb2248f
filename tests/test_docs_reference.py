"""docs/reference is what the program writes, and names every command, setting and function."""

import runpy
from dataclasses import fields
from pathlib import Path

import gpt2
from gpt2.cli import COMMANDS, GROUPS
from gpt2.training.config import TrainConfig

DOCS = Path(__file__).parent.parent / "docs"


def test_the_reference_is_that_of_the_code() -> None:
    pages = runpy.run_path(str(DOCS / "reference.py"), run_name="reference")["pages"]()
    for name, text in pages.items():
        stored = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert stored == text, "run python docs/reference.py"


def test_nothing_is_missing() -> None:
    commands, settings, library = (
        (DOCS / "reference" / name).read_text(encoding="utf-8")
        for name in ("commands.md", "settings.md", "library.md")
    )
    names = list(COMMANDS) + [f"{group} {name}" for group in GROUPS for name in GROUPS[group][1]]
    assert [name for name in names if f"## gpt2 {name}\n" not in commands] == []
    assert [f.name for f in fields(TrainConfig) if f"| `{f.name}` |" not in settings] == []
    assert [name for name in gpt2.__all__ if f"## gpt2.{name}\n" not in library] == []
    assert "| `--minutes` | `5.0` | Maximum training time in minutes. 0 means no limit. |" in commands
