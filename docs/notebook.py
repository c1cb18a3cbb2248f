"""Write notebooks/gpt2.ipynb: the chapters of docs/learn as one notebook.

    python docs/notebook.py

A block of Python or of `gpt2` commands becomes a cell of code, and the output that the page shows below it becomes
the output of that cell. Everything else is text. `tests/test_learn_*.py` run the blocks of the pages.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEARN = Path(__file__).parent / "learn"
NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "gpt2.ipynb"
CHAPTERS = sorted(LEARN.glob("[0-9]*.md"))
BLOCK = re.compile(
    r'^```(python|sh)(?: title="(?P<title>[^"]*)")?\n(?P<code>.*?)^```$'
    r'(?:\n+```text(?: title="[^"]*")?\n(?P<shown>.*?)^```$)?',
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")
START = """# Learn GPT-2 by running it

This notebook is made from the chapters of [docs/learn](README.md) by `python docs/notebook.py`. Install the program
and Jupyter in one environment (`pip install -e . jupyterlab`), start `jupyter lab` there, and run the cells in their
order. The outputs that are stored are those of the pages. The cell below makes a folder for the whole course."""
FOLDER = """import os
from pathlib import Path

folder = Path.home() / "gpt2-course"
folder.mkdir(exist_ok=True)
os.chdir(folder)"""


def notebook() -> dict[str, Any]:
    """Return the notebook, in version 4.5 of Jupyter's format (https://nbformat.readthedocs.io)."""
    cells = [text_cell(START), code_cell(FOLDER)]
    for chapter in CHAPTERS:
        cells += chapter_cells(chapter.read_text(encoding="utf-8"))
    return {
        "cells": [{"id": f"cell-{number}"} | cell for number, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def chapter_cells(page: str) -> Iterator[dict[str, Any]]:
    """Yield the cells of a page: one of code for each block that can run in a notebook, and the text between them."""
    start = 0
    for block in BLOCK.finditer(page):
        is_python = block[1] == "python"
        if (block["title"] or "").startswith("needs ") or not (is_python or block["code"].startswith("gpt2 ")):
            continue  # stays in the text
        if text := page[start : block.start()].strip():
            yield text_cell(text)
        yield code_cell(block["code"].rstrip() if is_python else shell(block["code"]), block["shown"])
        start = block.end()
    if text := page[start:].strip():
        yield text_cell(text)


def shell(commands: str) -> str:
    """Return commands as lines that Jupyter gives to a shell, which shows what they print at once."""
    return "\n".join(f"!{line}" if line else "" for line in re.sub(r"\s*\\\n\s*", " ", commands).splitlines())


def text_cell(text: str) -> dict[str, Any]:
    """Return a cell of text, whose links lead from the notebook to the same files."""
    return {"cell_type": "markdown", "metadata": {}, "source": lines(LINK.sub(moved, text))}


def code_cell(code: str, shown: str | None = None) -> dict[str, Any]:
    """Return a cell of code, with what it prints."""
    outputs = [{"name": "stdout", "output_type": "stream", "text": lines(shown)}] if shown else []
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": outputs, "source": lines(code)}


def moved(link: re.Match[str]) -> str:
    """Return the start of a relative link of a chapter as it has to be in the notebook."""
    return link[1] + Path(os.path.relpath(LEARN / link[2], NOTEBOOK.parent)).as_posix()


def lines(text: str) -> list[str]:
    """Return the lines of a text with their ends, as Jupyter stores them."""
    return text.splitlines(keepends=True)


def written() -> str:
    """Return the text of the notebook's file."""
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.parent.mkdir(exist_ok=True)
    NOTEBOOK.write_text(written(), encoding="utf-8")
