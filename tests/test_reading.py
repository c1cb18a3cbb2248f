"""The way of a reader through the code is short, and README names every file on it in the order of the calls."""

import re
from pathlib import Path

import pytest
from call_trace import files, switches, trace_model, trace_start, trace_step

import gpt2

README = Path(gpt2.__file__).parent.parent.parent / "README.md"


def named_files() -> list[str]:
    """The source files that README lists for an optimizer step, without those of other optimizers."""
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## Read the code") : text.index("Around it:")]
    return [name for name in re.findall(r"`([\w/]+\.py)`", section) if name != "optim/muon.py"]


def test_readme_names_the_files_of_an_optimizer_step_in_their_order(tmp_path: Path) -> None:
    if not README.is_file():
        pytest.skip("needs the repository around the package")
    assert named_files() == files(trace_step(tmp_path))


def test_all_files_that_readme_names_exist() -> None:
    if not README.is_file():
        pytest.skip("needs the repository around the package")
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## Read the code") :]
    names = [name for name in re.findall(r"`([\w/]+\.py)`", section) if name != "README.md"]
    assert len(names) > 12
    assert [name for name in names if not (Path(gpt2.__file__).parent / name).is_file()] == []


def test_the_ways_are_short(tmp_path: Path) -> None:
    """A limit that a change exceeds is a question: does a reader need one more file to understand this?"""
    folders = [tmp_path / name for name in ("step", "start", "model")]
    for folder in folders:
        folder.mkdir()
    step, start, model = trace_step(folders[0]), trace_start(folders[1]), trace_model(folders[2])
    assert len(files(step)) <= 9
    assert switches(step) <= 14
    assert len(files(start)) <= 38
    assert len(files(model)) <= 11
