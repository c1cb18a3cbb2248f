"""Results on the page of `gpt2 serve` in a real browser say whose they are, and links and files are about them."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browsing import copied_link, saved
from generation.models import random_model
from serve.conftest import Running, running

from gpt2.inside.predictions import losses

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def two() -> Iterator[Running]:
    """A server with two models, whose tokens are bytes."""
    other = random_model(block_size=128)
    for parameter in other.parameters():
        parameter.data *= 0.9
    with running(others={"other": other}) as one:
        yield one


def result(tab: "Page", view: str, text: str, button: str, **fields: str) -> "Locator":
    """Compute a view of a text, and return its panel when it is complete. fields: values of fields, by their id."""
    tab.get_by_role("tab", name=view).click()
    panel = tab.locator(f"#view-{view}")
    panel.locator("textarea").first.fill(text)
    for name, value in fields.items():
        field = tab.locator(f"#{name}")
        field.select_option(value) if name == "compare" else field.fill(value)
    panel.get_by_role("button", name=button, exact=True).click()
    panel.locator(".whose").wait_for()
    panel.get_by_role("button", name=button, exact=True).wait_for()
    return panel


def test_a_result_stays_that_of_its_model_and_its_text(two: Running, opened: Open, tmp_path: Path) -> None:
    tab = opened(two.address)
    panel = result(tab, "Read", "first text", "Read", compare="")
    figures = panel.locator(".tiles").inner_text()
    warning = panel.locator(".outdated", has_text="still that of tiny for the text “first text”")
    assert panel.locator(".whose").inner_text() == "Result of tiny" and not warning.is_visible()
    tab.get_by_label("Model", exact=True).select_option("other")
    assert warning.is_visible()
    tab.get_by_label("Model", exact=True).select_option("tiny")
    tab.locator("#compare").select_option("")
    assert not warning.is_visible()
    tab.locator("#read-text").fill("second text")
    tab.get_by_label("Model", exact=True).select_option("other")
    assert warning.is_visible() and panel.locator(".whose").inner_text() == "Result of tiny"
    lens = opened(saved(tab, tmp_path / "lens.html"))
    assert lens.locator("h1").inner_text() == "tiny" and lens.locator(".tiles").inner_text() == figures
    again = opened(copied_link(tab))
    panel = again.locator("#view-Read")
    panel.locator(".tiles").wait_for()
    assert panel.locator(".tiles").inner_text() == figures
    assert panel.locator(".whose").inner_text() == "Result of tiny"
    assert panel.locator(".outdated", has_text="still that of tiny").is_visible()
    assert again.locator("#read-text").input_value() == "second text"
    assert again.get_by_label("Model", exact=True).input_value() == "other"


def test_the_file_of_a_view_is_of_what_it_shows(two: Running, opened: Open, tmp_path: Path) -> None:
    """The second text of patching belongs to the view Inside alone."""
    tab = opened(two.address)
    result(tab, "Inside", "a text", "Look inside", against="a test")
    lens = opened(saved(tab, tmp_path / "inside.html") + "#Inside")
    lens.get_by_role("heading", name="Activation patching").wait_for()
    result(tab, "Read", "a longer text", "Read", compare="")
    lens = opened(saved(tab, tmp_path / "read.html") + "#Inside")
    lens.get_by_role("heading", name="Attribution").wait_for()
    assert lens.get_by_role("heading", name="Activation patching").count() == 0


def test_the_file_of_a_comparison_shows_both_models(two: Running, opened: Open, tmp_path: Path) -> None:
    tab = opened(two.address)
    panel = result(tab, "Read", "a longer text", "Read", compare="other")
    assert panel.locator(".whose").inner_text() == "Result of tiny and other"
    file = opened(saved(tab, tmp_path / "compared.html"))
    tiles = ".tiles dd"
    file.locator(".pair .worst").nth(1).wait_for()
    assert file.locator("h1").inner_text() == "tiny and other"
    assert file.locator(tiles).all_inner_texts() == panel.locator(tiles).all_inner_texts()
    file.locator(".tokens").first.locator("[data-token='5']").click()
    panel.locator(".tokens").first.locator("[data-token='5']").click()
    assert file.locator(".readout").inner_text() == panel.locator(".readout").inner_text()
    file.get_by_role("tab", name="Inside").click()
    file.get_by_text("These views are those of tiny.").wait_for()
    file.get_by_role("heading", name="Attribution").wait_for()


def test_a_written_text_says_who_wrote_it(two: Running, opened: Open, tmp_path: Path) -> None:
    tab = opened(two.address)
    tab.get_by_role("button", name="Save").click()
    tab.locator("main > .status", has_text="Nothing is shown yet").wait_for()
    tab.get_by_label("Tokens", exact=True).fill("3")
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.locator("#view-Write .status", has_text="3 tokens in").wait_for()
    tab.get_by_label("Model", exact=True).select_option("other")
    assert tab.locator("#view-Write .whose").inner_text() == "Written by tiny"
    still = opened(saved(tab, tmp_path / "written.html"))
    assert still.title() == "tiny · gpt2" and still.locator("h1").inner_text() == "tiny"


def test_refusals_are_sentences_about_the_page(two: Running, browser: "Browser") -> None:
    """The API names fields of requests, which no reader of the page has seen."""
    tab = browser.new_page()
    tab.goto(f"{two.address}/#Inside")
    text, against, go = tab.locator("#inside-text"), tab.locator("#against"), tab.locator("#view-Inside button.main")
    for first, second, sentence in (
        ("x", "", "The text has 1 token, and at least 2 are needed. Give a longer one."),
        ("x" * 129, "", "The text has 129 tokens, and the model sees 128. Give a shorter one."),
        ("xy", "x", "The second text has 1 token, and at least 2 are needed. Give a longer one."),
        ("xy", "xyz", "The two texts have 2 and 3 tokens. Give texts of the same number."),
        ("xy", "xy", "The two texts have the same tokens. Give texts that differ."),
    ):
        text.fill(first)
        against.fill(second)
        go.click()
        tab.locator("#view-Inside .failed", has_text=re.compile(f"^{re.escape(sentence)}$")).wait_for()
    tab.get_by_role("tab", name="Write").click()
    tab.get_by_label("Temperature", exact=True).fill("0.0001")
    tab.get_by_role("button", name="Write", exact=True).click()
    said = "The temperature is 0.0001. It must be 0 (the likeliest token) or lie in 0.001 … 1000."
    tab.locator("#view-Write .failed", has_text=said).wait_for()
    tab.close()


def test_figures_have_units_and_no_exponents(two: Running, opened: Open) -> None:
    tab = opened(f"{two.address}/#Read")
    text = "a text"
    panel = result(tab, "Read", text, "Read", compare="other")
    perplexities = panel.locator(".tiles div", has_text="perplexity").locator("dd")
    for one, shown in zip(two.api.models.values(), perplexities.all(), strict=True):
        mean = float(losses(one.decoder.engine.model, torch.tensor(list(text.encode()))).loss.mean())
        assert shown.inner_text().split()[0] == f"{float(f'{math.exp(mean):.4g}'):,.0f}"
    assert re.search(r"difference [+−]\d+\.\d\d nats$", panel.locator(".readout").inner_text())
    panel.locator(".legend", has_text=re.compile(r"colour is \d+(\.\d+)? nats")).wait_for()
    assert "loss in nats" in panel.locator(".worst thead").first.inner_text()


def test_what_is_said_is_taken_back_when_it_is_no_longer_true(two: Running, browser: "Browser") -> None:
    tab = browser.new_page()
    tab.goto(two.address)
    line, status = tab.locator("main > .status"), tab.locator("#view-Read .status")
    tab.get_by_role("button", name="Save").click()
    tab.locator("main > .status", has_text="Nothing is shown yet").wait_for()
    tab.get_by_role("tab", name="Read").click()
    assert line.inner_text() == ""
    tab.locator("#read-text").fill("x")
    tab.get_by_role("button", name="Read", exact=True).click()
    tab.locator("#view-Read .failed").wait_for()
    tab.locator("#read-text").fill("xy")
    assert status.inner_text() == ""
    tab.get_by_role("tab", name="Write").click()
    tab.get_by_label("Prompt").fill("x" * 128)
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.locator("#view-Write .failed", has_text="The model sees 128 tokens").wait_for()
    tab.get_by_label("Prompt").fill("x")
    assert tab.locator("#view-Write .status").inner_text() == ""
    tab.close()


def test_nothing_can_be_saved_or_copied_before_the_views_are_there(two: Running, opened: Open) -> None:
    tab, waiting = opened(two.address), []
    tab.route("**/v1/models", lambda route: waiting.append(route))
    with tab.expect_request("**/v1/models"):
        tab.reload()
    for name in ("Save", "Copy link"):
        assert tab.get_by_role("button", name=name).is_disabled()
    waiting.pop().continue_()
    tab.get_by_role("button", name="Save").click()
    tab.locator("main > .status", has_text="Nothing is shown yet").wait_for()


def test_a_seed_that_is_none_is_refused(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    seed, about = tab.get_by_label("Seed"), tab.locator("#about-seed")
    seed.fill("-3")
    assert about.inner_text().startswith("A seed is a whole number") and seed.get_attribute("aria-invalid") == "true"
    tab.get_by_role("button", name="Write", exact=True).click()
    tab.locator("#view-Write .status.failed", has_text="A seed is a whole number").wait_for()
    assert not tab.locator(".written").is_visible()
    seed.fill("3")
    assert "the same seed gives the same text" in about.inner_text()


def test_the_row_of_inside_names_the_views_that_it_is_about(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    panel = result(tab, "Inside", "a text", "Look inside")
    assert "All views below are about" in panel.locator(".sticky").inner_text()
    panel = result(tab, "Inside", "a text", "Look inside", against="a b xt")
    assert "All views below except activation patching are about" in panel.locator(".sticky").inner_text()
    panel.get_by_role("heading", name="Activation patching").wait_for()
    assert [text for text in panel.locator("th").all_text_contents() if not text.strip()] == []


def test_a_change_overwrites_no_address_that_was_opened_since(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tab.evaluate(
        "() => { const real = Response.prototype.arrayBuffer; Response.prototype.arrayBuffer = async function () {"
        " await new Promise((go) => { window.go = go; }); return real.call(this); }; }"
    )
    tab.get_by_label("Prompt").fill("another")
    tab.wait_for_function("() => window.go !== undefined")
    tab.evaluate("location.hash = '#Read'")
    tab.locator("#view-Read").wait_for()
    tab.evaluate("async () => { window.go(); await new Promise((then) => setTimeout(then, 50)); }")
    assert tab.url.endswith("#Read")
