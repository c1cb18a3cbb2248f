"""The words of the code and its documents: the field's terms, in sentences, and files that can be read."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpt2

PACKAGE = Path(gpt2.__file__).parent
ROOT = PACKAGE.parent.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
INSTEAD = {
    r"places": "positions (of a sequence), offsets (of a token file)",
    r"told": "logged, reported; recognised by",
    r"noted": "logged, recorded",
    r"mend(s|ed|ing)?": "fix",
    r"beside": "in the background; compared with; next to",
    r"heed(s|ed|ing)?": "respect, document mask",
    r"passed over|spoiled": "skipped",
    r"left out": "skipped (batches), omitted",
    r"peers?": "other programs, reference implementations",
    r"so many|so much": "n, the number of",
    r"moments": "optimizer state",
    r"whoever|whereabouts|anew": "plain words",
    r"boundary": "eot_token",
}
"""Words that this project used for things that the field has names for."""
WORDS = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
QUOTED = re.compile(r"`[^`\n]*`|```.*?```", re.DOTALL)
"""Code in a document, whose names are checked in the source."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every string and comment of a source file."""
    content = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_source_uses_the_terms_of_the_field(path: Path) -> None:
    wrong = [f"{path.name}:{line}: {word[0]}" for line, text in texts(path) for word in WORDS.finditer(text)]
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_documents_use_the_terms_of_the_field(path: Path) -> None:
    text = QUOTED.sub(lambda code: re.sub(r"\S", "x", code[0]), path.read_text(encoding="utf-8"))
    wrong = [f"{path.name}:{text.count(chr(10), 0, word.start()) + 1}: {word[0]}" for word in WORDS.finditer(text)]
    assert wrong == []


FRAGMENT = re.compile(r"^(Whether|What|How|Where|Which|When|That|Of|By|In|Under|With|As|Likewise|Until)\b")
"""First words of a docstring that is no sentence by itself."""


def public_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and docstring of every public function, method and class of a source file, and of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[tuple[str, ast.AST]] = [("", tree)]
    while nodes:
        prefix, node = nodes.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and child.name[0] != "_":
                is_property = any(isinstance(d, ast.Name) and "property" in d.id for d in child.decorator_list)
                if (text := ast.get_docstring(child)) and not is_property:
                    yield prefix + child.name, text
                if isinstance(child, ast.ClassDef):
                    nodes.append((f"{child.name}.", child))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_docstrings_begin_with_a_sentence(path: Path) -> None:
    wrong = []
    for name, text in public_docstrings(path):
        first = text.split("\n\n")[0].replace("\n", " ")
        if not re.match(r"[A-Z`]", first) or not re.search(r"[.:]( |$|\))", first) or FRAGMENT.match(first):
            wrong.append(f"{path.name}: {name}: {first}")
    assert wrong == []


def test_files_and_functions_can_be_read_in_one_sitting() -> None:
    sizes = {str(p.relative_to(PACKAGE)): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert sizes["model.py"] <= 200
    assert {name: lines for name, lines in sizes.items() if lines > 350} == {}
    long = [
        f"{path.name}: {node.name}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and path.parent.name == "training"
        if node.end_lineno - node.lineno + 1 > 45
    ]
    assert long == []
