"""docs/reference is what the program writes, and names every command, setting and function."""

import re
import runpy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import gpt2
from gpt2.cli import COMMANDS, GROUPS
from gpt2.generation.sampling import Sampling
from gpt2.training.config import TrainConfig

DOCS = Path(__file__).parent.parent / "docs"
PROGRAM = runpy.run_path(str(DOCS / "reference.py"), run_name="reference")
NAMES = [*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group][1])]


def test_the_reference_is_that_of_the_code() -> None:
    for name, text in PROGRAM["pages"]().items():
        stored = (DOCS / "reference" / name).read_text(encoding="utf-8")
        assert stored == text, "run python docs/reference.py"


def test_nothing_is_missing() -> None:
    commands, settings, library = (
        (DOCS / "reference" / name).read_text(encoding="utf-8")
        for name in ("commands.md", "settings.md", "library.md")
    )
    assert [name for name in NAMES if f"### gpt2 {name}\n" not in commands] == []
    assert [f.name for f in fields(TrainConfig) if f"| `{f.name}` |" not in settings] == []
    assert [name for name in gpt2.__all__ if f"## gpt2.{name}\n" not in library] == []
    assert (
        "| `--minutes` | `5.0` | Maximum training time in minutes. 0 means no limit. *Values: number, 0 to 10^9.* |"
        in commands
    )
    assert "| `--min_p` | `0.0` |" in commands  # 0 is a default, though it equals False
    assert "*Values: `random`, `shuffled`, `sequential`.* |" in settings
    assert "    ) -> TrainResult\n" in library
    assert all(f"| `{f.name}` |" in library for f in fields(Sampling))
    assert "| `top_k` | `200` |" in library  # of generate, where Sampling itself has no limit


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("train", "sweep", "plan", "bench train")])
def test_the_options_of_a_command_are_those_of_its_help(
    name: str, gpt2_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, text, _ = gpt2_command(*name.split(), "--help")
    assert status == 0
    shown = set(re.findall(r"^│[ *]+--(\w+)", text, re.MULTILINE))
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    [section] = re.findall(rf"^### gpt2 {name}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^\| `--(\w+)`", section, re.MULTILINE)) == shown
    for choices in re.findall(r"\[choices: (.*?)\]", text):
        assert f"*Values: {', '.join(f'`{choice}`' for choice in choices.split(', '))}.* |" in section


@pytest.mark.parametrize(
    ("requirement", "limits"),
    [
        ("be at least 0 and at most 1,000", "0 to 1,000"),
        ("be at least 1 and at most 1,000,000,000,000", "1 to 10^12"),
        ("be at least 0 and at most 1e+30", "0 to 10^30"),
        ("be at least 0 and below 1", "at least 0 and below 1"),
        ("lie in (0, 1]", "in (0, 1]"),
    ],
)
def test_bounds_are_written_as_ranges(requirement: str, limits: str) -> None:
    assert PROGRAM["limits"](requirement) == limits
