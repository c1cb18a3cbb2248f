"""Every picture of docs/learn stands above a comment that says which program draws it, and from which stored run.

`test_docs.py` draws the pictures again and says when one is stale; `test_learn_training.py` and `test_learn_scale.py`
say when the settings of a stored run are no longer those of the page.
"""

import inspect
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "docs" / "learn").glob("[0-9]*.md"))
PICTURE = re.compile(r"^!\[[^\]]*\]\(\.\./images/([\w-]+)\.svg\)$(?:\n\n<!--(.*?)-->$)?", re.MULTILINE | re.DOTALL)
STORED = re.compile(r'\bstored\("(\w+)"\)')
COMMAND = re.compile(r"`python docs/pictures/learn_training\.py (\w+) \S+`")


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """The name of the module that draws each picture, and the text of its function."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "pictures")
    found = {}
    for path in (ROOT / "docs" / "pictures").glob("learn_*.py"):
        for name, draw in runpy.run_path(str(path), run_name="pictures")["PICTURES"].items():
            found[name] = path.name, inspect.getsource(draw)
    return found


def test_every_picture_is_beside_the_command_that_makes_it(programs: dict[str, tuple[str, str]]) -> None:
    drawn = [match for page in CHAPTERS for match in PICTURE.finditer(page.read_text(encoding="utf-8"))]
    assert sorted(match[1] for match in drawn) == sorted(programs)
    for name, comment in (match.groups() for match in drawn):
        module, function = programs[name]
        assert comment, f"{name} has no comment below it"
        assert "`python docs/pictures`" in comment and f"({module})" in comment, name
        assert COMMAND.findall(comment) == STORED.findall(function), name


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_no_block_names_a_file_that_only_the_repository_has(page: Path) -> None:
    """The reader of a chapter is in a folder of the course, and not in a checkout."""
    for block in re.findall(r"^```(?:sh|python).*?^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        assert not re.search(r"\b(?:docs|src|tests|launch|notebooks)/", block), block
