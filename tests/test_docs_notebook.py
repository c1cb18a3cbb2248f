"""The notebook is that of the chapters: their blocks in their order, with links that lead somewhere."""

import json
import re
import runpy
from pathlib import Path

import pytest
from documents import blocks, commands

ROOT = Path(__file__).parent.parent
PROGRAM = runpy.run_path(str(ROOT / "docs" / "notebook.py"), run_name="notebook")
NOTEBOOK = ROOT / "notebooks" / "gpt2.ipynb"
FIRST = 1
"""The cell of code before the chapters, which makes a folder."""


def test_the_notebook_is_that_of_the_chapters() -> None:
    assert NOTEBOOK.read_text(encoding="utf-8") == PROGRAM["written"](), "run python docs/notebook.py"


def test_the_cells_of_code_are_the_blocks_that_the_tests_of_the_chapters_run() -> None:
    """`documents.py`, which reads the pages for these tests, finds the blocks in another way."""
    expected = []
    for page in sorted((ROOT / "docs" / "learn").glob("[0-9]*.md")):
        for language, block, shown in blocks(page.read_text(encoding="utf-8")):
            lines = [" ".join(words) for words in commands(block)] if language == "sh" else []
            if language == "python" or (lines and lines[0].startswith("gpt2 ")):
                expected.append((lines or block.rstrip(), shown[2] if shown else ""))
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert len(cells) == len(expected) + FIRST
    for cell, (code, shown) in zip(cells[FIRST:], expected, strict=True):
        source = "".join(cell["source"])
        if isinstance(code, list):
            assert all(line.startswith("!") for line in source.splitlines() if line)
            assert [" ".join(words) for words in commands(re.sub("^!", "", source, flags=re.MULTILINE))] == code
        else:
            assert source == code
        assert "".join("".join(output["text"]) for output in cell["outputs"]) == shown


def test_the_links_of_the_notebook_lead_to_files() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    assert len(links) > 50
    assert [link for link in links if link and not (NOTEBOOK.parent / link).resolve().is_file()] == []


def test_the_notebook_is_valid() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
