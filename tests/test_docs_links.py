"""Every link inside the documents leads to a file and a heading that exist, on GitHub and on the site."""

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *(`{3,}).*?^ *\1`*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
LINK = re.compile(
    r"""\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)   # [text](target) and ![text](target)
    |^\s{0,3}\[[^\]]+\]:\s*(\S+)                    # [label]: target
    |\b(?:href|src)="([^"]+)"                       # <a href="target">
    """,
    re.MULTILINE | re.VERBOSE,
)
HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)? *$", re.MULTILINE)
COPIED = ("README.md", "CONTRIBUTING.md", "LICENSE", "benchmarks", "docs", "launch", "notebooks", "src", "tests")
"""What `make docs` copies into the site."""
DIFFERENT = {
    r"^[^\s|>#*\-].*\n(?:[-*] |1\. |\|)": "a list or table needs an empty line before it",
    r"^(?: {1,3}|\t)(?:[-*] |\d\. |\||```)": "what is inside an item of a list is indented by 4 spaces",
    r"^\|(?:[^`\n]|`[^`\n]*`)*`[^`\n]*\\\|": "only GitHub drops the backslash before a pipe in code",
}
"""What GitHub and the site show in different ways (https://python-markdown.github.io/#differences)."""


def links(text: str) -> list[str]:
    """Return the targets of all links and pictures of a page, without those in code."""
    text = CODE.sub("`code`", FENCE.sub("", text))
    return [next(filter(None, found)) for found in LINK.findall(text)]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page as GitHub makes them.

    A heading loses its markup, capitals and punctuation; each space becomes a hyphen; a second heading of the same
    name ends in -1 (github-slugger, which is GitHub's own algorithm).
    """
    found, counts = set(), Counter[str]()
    for heading in HEADING.findall(FENCE.sub("", text)):
        parts = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).split("`")
        parts[::2] = [re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)|<[^>]*>", "", part) for part in parts[::2]]  # outside code
        name = re.sub(r"[^\w\- ]", "", "".join(parts).lower()).replace(" ", "-")
        found.add(f"{name}-{counts[name]}" if counts[name] else name)
        counts[name] += 1
    return found


def broken(page: Path, root: Path) -> list[str]:
    """Return the links of a page that lead nowhere, with what is missing."""
    wrong = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.is_dir():
            wrong.append(f"{link}: the site has no page of a folder; link to a file in it")
        elif not target.is_file():
            wrong.append(f"{link}: there is no such file")
        elif not target.is_relative_to(root) or target.relative_to(root).parts[0] not in COPIED:
            wrong.append(f"{link}: the site has no copy of this file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{link}: there is no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken(page, ROOT) == []


def differences(text: str) -> list[str]:
    """Return the lines of a page that look different on GitHub and on the site, and how to write them."""
    text = FENCE.sub(lambda block: f"{block[0].split('`')[0]}```", text)
    return [
        f"{found[0]}: {how}" for what, how in DIFFERENT.items() for found in re.finditer(what, text, re.MULTILINE)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_look_the_same_on_github_and_on_the_site(page: Path) -> None:
    assert differences(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("A list:\n\n- one\n  goes on\n- two\n\n    ```sh\n    - x\n    ```\n", 0),
        ("A list:\n- one\n", 1),
        ("A table:\n| a | b |\n", 1),
        ("- one\n\n  | a | b |\n", 1),
        ("- one\n\n  ```sh\n  ls\n  ```\n", 1),
        ("- one\n  - inner\n", 1),
        ("| `a\\|b` | c |\n", 1),
        ("| `a` \\| `b` | c |\n", 0),
        ("```text\nA list:\n- one\n  - two\n| `\\|` |\n```\n", 0),
    ],
)
def test_what_looks_different_is_found(text: str, count: int) -> None:
    assert len(differences(text)) == count


def test_the_site_lists_every_page_once() -> None:
    def listed(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        nested = entries.values() if isinstance(entries, dict) else entries
        return [page for entry in nested for page in listed(entry)]

    nav = listed(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"])
    assert sorted(nav) == sorted(page.relative_to(ROOT).as_posix() for page in PAGES), "see nav in zensical.toml"


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Where the parameters are", "where-the-parameters-are"),
        ("log.jsonl", "logjsonl"),
        ("`gpt2 plot`, and *more* _so_", "gpt2-plot-and-more-so"),
        ("A & B – C", "a--b--c"),
        ("`--batch_size` and snake_case", "--batch_size-and-snake_case"),
        ("See [the page](data.md)!", "see-the-page"),
        ("Café ##", "café"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    """The expected anchors were worked out by hand with the rules of github-slugger."""
    assert anchors(f"text\n\n## {heading}\n\n```sh\n# no heading\n```\n") == {anchor}


def test_headings_of_the_same_name_are_numbered() -> None:
    assert anchors("# Try it\n\n## Try it\n\n## Try it\n") == {"try-it", "try-it-1", "try-it-2"}


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/data.md").write_text("# Data\n")
    (tmp_path / "setup.py").touch()
    page = tmp_path / "README.md"
    page.write_text(
        "# Start\n[a](docs/data.md) [b](docs/data.md#data) [c](#start) ![d](docs/missing.png)\n"
        "[e](docs/data.md#date) [f](#end) [g](setup.py) [l](docs) [h](https://example.org/x#y) `[i](none.md)`\n"
        "[j]\n\n[j]: docs/none.md\n\n"
        '```text\n[k](none.md)\n```\n<img src="gone.svg">\n'
    )
    assert broken(page, tmp_path) == [
        "docs/missing.png: there is no such file",
        "docs/data.md#date: there is no such heading",
        "#end: there is no such heading",
        "setup.py: the site has no copy of this file",
        "docs: the site has no page of a folder; link to a file in it",
        "docs/none.md: there is no such file",
        "gone.svg: there is no such file",
    ]
