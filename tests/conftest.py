"""What many tests need: a tiny dataset, a tiny run, the command line in-process, the real data beside the project."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browsing import CHROMIUM, DESKTOP
from hypothesis import settings
from real_data import SHARED

from gpt2.data.prepare import prepare
from gpt2.training.config import TrainConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)  # the tests run side by side, one process a core
if (SHARED / "tiktoken-cache").is_dir():
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken-cache"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> None:
    """GPT-2's vocabulary; tests that need it are skipped where it is neither cached nor to be downloaded."""
    from gpt2.errors import UserError
    from gpt2.tokenizers import gpt2_tokenizer

    try:
        gpt2_tokenizer()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def text() -> str:
    """A few thousand words that a model can learn something from."""
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "two",
        "dogs",
        "run",
        "over",
        "some",
        "hill",
    ]
    rng = random.Random(0)
    return "\n".join(" ".join(rng.choices(words, k=8)) + "." for _ in range(600))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, text: str) -> Path:
    """A prepared character dataset."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "text.txt").write_text(text)
    return prepare(folder / "text.txt", out=folder / "prepared", tokenizer="char")


@pytest.fixture(scope="session")
def heeding(tmp_path_factory: pytest.TempPathFactory, text: str) -> dict[str, str | bool]:
    """The settings of a run that heeds documents, most of them shorter than a row of `tiny`."""
    folder, words, rng = tmp_path_factory.mktemp("documents"), iter(text.split()), random.Random(1)
    for i in range(400):
        (folder / f"{i}.txt").write_text(" ".join(next(words) for _ in range(rng.randint(1, 6))))
    prepared = prepare(folder, out=folder.parent / f"{folder.name}_prepared", tokenizer="byte")
    return {"dataset": str(prepared), "document_mask": True, "align_documents": True}


@pytest.fixture
def tiny(dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes the configuration of a run of a second, with changes."""

    def make(**changes) -> TrainConfig:
        settings = {
            "out_dir": str(tmp_path / "run"),
            "dataset": str(dataset),
            "max_iters": 20,
            "batch_size": 4,
            "block_size": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 16,
            "learning_rate": 1e-2,
            "eval_interval": 10,
            "eval_iters": 2,
            "device": "cpu",
            "dtype": "float32",
            "compile": False,
        }
        return TrainConfig(**settings | changes)

    return make


@pytest.fixture
def gpt2_command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process: (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from gpt2.cli import main

        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A Chromium that is installed already; tests that need it are skipped without it, and without Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    if not CHROMIUM:
        pytest.skip("needs Chromium in the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Opens a page; at the end of the test it must have complained of nothing and asked nobody but its own server."""
    contexts, complaints, asked = [], [], []

    def open_page(address: str, viewport: dict[str, int] = DESKTOP, scheme: str = "light") -> "Page":
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in complaints if "ERR_CONNECTION_REFUSED" not in text] == []  # of a server that has gone
    assert asked
    assert [url for url in asked if not url.startswith(("file://", "http://127.0.0.1:", "data:,"))] == []
