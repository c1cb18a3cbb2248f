"""The site that `make docs` builds: without warnings, and with every link inside it leading to a file."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
COPIED = re.compile(r"tar -cf - --exclude=__pycache__ (.*?) \|")
"""What the Makefile copies for the site."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site from copies of the pages, as `make docs` does."""
    pytest.importorskip("zensical", reason="needs Zensical: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    pages = folder / "build" / "pages"
    pages.mkdir(parents=True)
    found = COPIED.search((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert found, "make docs copies the pages with tar"
    for pattern in found[1].split():
        for path in ROOT.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, pages / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, pages)
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [Path(sys.executable).parent / "zensical", "build", "--clean", "--strict"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "site"


def test_every_link_of_the_site_leads_to_a_file_and_an_anchor(site: Path) -> None:
    found = [
        page for page in site.rglob("index.html") if page.relative_to(site).parts[0] != "src"
    ]  # pages, not sources
    pages = {page: page.read_text(encoding="utf-8") for page in found}
    assert len(pages) > 30
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    wrong = []
    for page, text in pages.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            path, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:|//", link) or path.startswith("/"):
                continue
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{page.relative_to(site)}: {link}")
            elif anchor and target in anchors and anchor not in anchors[target]:
                wrong.append(f"{page.relative_to(site)}: {link} has no such anchor")
    assert wrong == []


def test_the_site_shows_titles_of_blocks_and_finds_settings(site: Path) -> None:
    chapter = (site / "docs" / "learn" / "07-training" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'<span class="filename">\s*for example\s*</span>', chapter)
    search = json.loads((site / "search.json").read_text(encoding="utf-8"))
    found = [item["location"] for item in search["items"] if "overfit_step" in item["text"]]
    assert "docs/reference/settings/#data" in found
    assert re.split(search["config"]["separator"], "--overfit_step=0")[1:] == ["overfit_step", "0"]  # one word
