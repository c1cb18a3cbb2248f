"""Text on the page of `gpt2 serve` in a real browser: from right to left, invisible, and in parts of characters."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from generation.models import random_model
from serve.conftest import running

from gpt2.tokenizers import CharTokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]
PLACE = """(element, text) => {
  const node = element.firstChild, range = document.createRange(), start = node.data.indexOf(text);
  range.setStart(node, start);
  range.setEnd(node, start + text.length);
  return range.getBoundingClientRect().left;
}"""
"""Returns the left end of a part of an element's text, in pixels."""


def test_letters_from_right_to_left_do_not_move_the_figures_beside_them(opened: Open) -> None:
    words = CharTokenizer("ab12 שלום")
    with running(network=random_model(vocab_size=words.vocab_size), tokenizer=words) as one:
        tab = opened(f"{one.address}/#Inside")
        tab.locator("#inside-text").fill("שלום")
        tab.get_by_role("button", name="Look inside").click()
        readout = tab.locator("#view-Inside .readout")
        readout.wait_for()
        said = ["From", "ש", "(1)", "to", "(1):", "100%"]  # the first token attends to itself
        assert "".join(readout.inner_text().split()).startswith("From“\u2068ש\u2069”(1)to“\u2068ש\u2069”(1):100%")
        places = [readout.evaluate(PLACE, part) for part in said]
        assert places == sorted(places)
        lefts = tab.locator(".chooser [data-token]").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect().left)"
        )
        assert lefts == sorted(lefts, reverse=True)  # the letters are in the order of the word


def test_invisible_characters_and_parts_of_characters_are_shown(opened: Open) -> None:
    text = "a\u200bb\u00a0🙂\u202ec"
    with running() as one:
        tab = opened(f"{one.address}/#Read")
        tab.locator("#read-text").fill(text)
        tab.get_by_role("button", name="Read", exact=True).click()
        tokens, panel = tab.locator("#view-Read .tokens [data-token]"), tab.locator("#view-Read .panel")
        tokens.first.wait_for()
        shown = ["a", "·", "·", "U+200B", "b", "·", "U+00A0", "·", "·", "·", "🙂", "·", "·", "U+202E", "c", "▸"]
        assert tokens.all_inner_texts() == shown
        names = [tokens.nth(i).get_attribute("aria-label") for i in (6, 7)]
        assert names[0].endswith(", a part of “⟨U+00A0⟩”") and names[1].endswith(", a part of “🙂”")
        tokens.nth(8).click()
        assert panel.locator("h3").inner_text() == "“\\x9f” · token 9, a part of “🙂”"
        tokens.nth(3).click()
        assert panel.locator("h3").inner_text() == "“\\x8b” · token 4, a part of “⟨U+200B⟩”"
        tab.get_by_role("tab", name="Write").click()
        tab.get_by_label("Prompt").fill(text)
        tab.get_by_label("Tokens", exact=True).fill("2")
        tab.get_by_role("button", name="Write", exact=True).click()
        tab.locator("#view-Write .status", has_text="tokens in").wait_for()
        assert tab.locator(".written .prompt").inner_text() == "aU+200BbU+00A0🙂U+202Ec"
        assert tab.locator(".written .prompt .code").all_inner_texts() == ["U+200B", "U+00A0", "U+202E"]


def test_a_character_that_a_tokenizer_lacks_is_named_without_the_text(browser: "Browser") -> None:
    words = CharTokenizer("ab")
    with running(network=random_model(vocab_size=words.vocab_size), tokenizer=words) as one:
        tab = browser.new_page()
        tab.goto(f"{one.address}/#Read")
        rest = "has the character 'c' (U+0063), which is not among the 2 characters of this tokenizer. Remove it from"
        for view, field, button, name in (
            ("Read", "#read-text", "Read", "text"),
            ("Write", "#prompt", "Write", "prompt"),
        ):
            tab.get_by_role("tab", name=view).click()
            tab.locator(field).fill("abc")
            tab.get_by_role("button", name=button, exact=True).click()
            tab.locator(f"#view-{view} .failed", has_text=f"The {name} {rest} the {name}.").wait_for()
        tab.close()
