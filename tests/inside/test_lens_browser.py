"""The page of `gpt2 lens` in a real browser: what it shows, by pointer and by keys, and that it runs no text."""

import pytest
import torch
from browsing import DESKTOP, PHONE, contrast, luminance
from varied import varied

from gpt2.data.shards import Tokens, open_shard
from gpt2.inside.analysis import Analysis
from gpt2.inside.lens_page import page
from gpt2.inside.predictions import losses
from gpt2.model import GPTConfig
from gpt2.tokenizers import ByteTokenizer

TEXT = "A text\n</script><img src=x onerror=alert(1)> of it."
LAST = {"Read": "Passages in the training data", "Inside": "Activation patching"}
"""The last title of each tab, whose views are drawn one after the other."""
CONFIG = GPTConfig(block_size=64, vocab_size=257, n_layer=3, n_head=4, n_embd=16)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything."""
    folder, ids = tmp_path_factory.mktemp("page"), list(TEXT.encode())
    torch.tensor(list(b"nothing </script><img here"), dtype=torch.int16).numpy().tofile(folder / "train.bin")
    made = Analysis("a/long/name/" * 6, varied(CONFIG), ByteTokenizer(), ids, lambda *work: None)
    made.add_text()
    made.add_patching(list(TEXT.replace("A", "B").encode()), ord("x"), ord("y"))
    made.add_memorised(Tokens([open_shard(folder / "train.bin")]), 5)
    (folder / "page.html").write_text(page(made.finished()), encoding="utf-8")
    return (folder / "page.html").as_uri()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_both_tabs_fit_their_window(opened, address: str, viewport: dict[str, int]) -> None:
    tab = opened(address, viewport)
    for name in ("Read", "Inside"):
        tab.get_by_role("tab", name=name).click()
        tab.get_by_role("heading", name=LAST[name]).wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        sizes = tab.evaluate(
            "[...document.querySelectorAll('section, .tokens, .panel, .wide')].filter(e => e.offsetParent)"
            ".map(e => e.getBoundingClientRect().right)"
        )
        assert max(sizes) <= viewport["width"]
    drawn = tab.evaluate(
        "[...document.querySelectorAll('.heads canvas, .matrix canvas')].map(c => [c.width, c.clientWidth,"
        "c.getContext('2d').getImageData(0, c.height - 1, 1, 1).data[3]])"
    )
    assert len(drawn) == 3 * 4 + 1
    assert all(pixels > 40 and width > 20 and alpha == 255 for pixels, width, alpha in drawn)


def test_the_text_is_shown_and_not_run(opened, address: str) -> None:
    tab = opened(address)
    shown = tab.locator("#view-Read .tokens").inner_text()
    assert shown.replace("⏎", "").removesuffix("▸") == TEXT
    assert tab.locator("main img").count() == 0
    assert tab.locator("mark").first.inner_text() == "</script><img "


def test_a_token_is_chosen_by_keys_and_by_the_pointer(opened, address: str) -> None:
    tab = opened(address)
    own = losses(varied(CONFIG), torch.tensor(list(TEXT.encode())))
    text, panel = tab.locator("#view-Read .tokens"), tab.locator("#view-Read .panel")
    text.focus()
    for key, token in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", len(TEXT))):
        tab.keyboard.press(key)
        chosen = text.locator("[aria-selected=true]")
        assert chosen.get_attribute("data-token") == str(token)
        assert text.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
        if token < len(TEXT):
            assert f"{own.loss[token - 1]:.2f} nats" in panel.inner_text()
    assert "After the text" in panel.inner_text()
    rows = panel.locator("tbody tr")
    assert rows.count() == 5
    likeliest = float(own.top_log_probs[-1, 0].exp())
    assert rows.first.locator("td").last.inner_text() == f"{100 * likeliest:.0f}%"
    tab.keyboard.press("Home")
    assert "not predicted" in panel.inner_text()
    tab.keyboard.press("ArrowDown")
    assert chosen.get_attribute("data-token") == "7"  # the first token of the second line
    tab.keyboard.press("ArrowUp")
    text.locator("[data-token='12']").hover()
    assert f"{own.loss[11]:.2f} nats" in panel.inner_text()
    tab.mouse.move(1, 1)
    assert "not predicted" in panel.inner_text()
    tab.get_by_role("button", name="show in the text").first.click()
    assert text.locator("[aria-selected=true]").get_attribute("data-token") == "7"


def test_colours_follow_the_chosen_measure(opened, address: str) -> None:
    tab = opened(address)
    own = losses(varied(CONFIG), torch.tensor(list(TEXT.encode())))
    token = tab.locator("#view-Read .tokens [data-token='5']")
    most = torch.tensor(257.0).log()
    for label, value in (("loss", own.loss[4]), ("rank", own.rank[4].log()), ("entropy", own.entropy[4])):
        tab.locator("#view-Read .axes label", has_text=label).click()
        assert f"v{round(float((value / most).clamp(0, 1)) * 8)}" in token.get_attribute("class").split()


def test_the_views_inside_are_used_with_keys_alone(opened, address: str) -> None:
    tab = opened(address)
    tab.get_by_role("tab", name="Read").focus()
    tab.keyboard.press("ArrowRight")
    tab.get_by_role("heading", name=LAST["Inside"]).wait_for()
    assert not tab.locator("#view-Read").is_visible()
    reached = []
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.className || document.activeElement.localName"))
        if reached[-1] == "tokens chooser":
            tab.keyboard.press("End")
            assert "what comes next" in tab.locator("#view-Inside .sticky").inner_text()
            tab.keyboard.press("Home")
            tab.keyboard.press("ArrowRight")
        if reached[-1] == "button" and "On average" in tab.locator(".head").inner_text():
            tab.keyboard.press("ArrowUp")
            tab.keyboard.press("Enter")
            assert (
                tab.locator(".heads [aria-pressed=true]").get_attribute("aria-label").startswith("layer 2, head 1:")
            )
        if reached[-1] == "matrix":
            tab.keyboard.press("ArrowDown")
            assert "From “␣” (2) to “A” (1): " in tab.locator(".readout").inner_text()
        if tab.evaluate("document.activeElement.localName") == "td":
            tab.keyboard.press("ArrowRight")
            assert tab.evaluate("document.activeElement.cellIndex") > 1
    assert {"matrix", "tokens chooser", "input"} <= set(reached)
    assert tab.locator("table[role=grid]").count() == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_every_colour(opened, address: str, scheme: str) -> None:
    tab = opened(address, scheme=scheme)
    colours = tab.evaluate(
        "[...Array(9).keys()].map(i => { const e = document.createElement('span'); e.className = 'v' + i;"
        "document.body.append(e); const s = getComputedStyle(e); return [s.backgroundColor, s.color] })"
    )
    assert all(contrast(*pair) >= 4.5 for pair in colours)
    lightness = [luminance(background) for background, _ in colours]
    assert lightness == sorted(lightness, reverse=scheme == "light")
    tab.get_by_role("tab", name="Inside").click()
    tab.get_by_role("heading", name=LAST["Inside"]).wait_for()
    strongest = tab.evaluate(
        "['plus', 'minus'].map(name => { const e = document.createElement('td'); e.className = name;"
        "e.style.setProperty('--strength', '45%'); document.querySelector('.cells tr').append(e);"
        "const s = getComputedStyle(e); return [s.backgroundColor, s.color] })"
    )
    assert all(contrast(*pair) >= 4.5 for pair in strongest)


def test_an_address_opens_a_tab_at_a_token(opened, address: str) -> None:
    tab = opened(f"{address}#Inside/{len(TEXT)}")
    assert "what comes next" in tab.locator("#view-Inside .sticky").inner_text()
    likely = tab.locator("#view-Inside .panel").inner_text()
    assert likely.startswith(f"Layer 3, after “{TEXT[-1]}”")
    assert "KL from the last layer 0.000 nats" in likely


def test_patching_begins_where_the_texts_differ(opened, address: str) -> None:
    tab = opened(f"{address}#Inside")
    grid = tab.get_by_role("grid", name="Patching of the residual stream")
    heads = grid.locator("thead th")
    assert heads.nth(1).inner_text() == "A ← B"
    assert heads.count() == 1 + 32
    first_layer = grid.locator("tbody tr").last.locator("td")
    assert first_layer.all_inner_texts() == ["100", *["·"] * 31]  # its embedding is all that differs
    tab.locator(".window button", has_text="later").last.click()
    assert heads.count() == 1 + len(TEXT) - 32


def test_names_of_all_that_can_be_used_are_known_to_screen_readers(opened, address: str) -> None:
    tab = opened(address)
    for name in ("Read", "Inside"):
        tab.get_by_role("tab", name=name).click()
        tab.get_by_role("heading", name=LAST[name]).wait_for()
        unnamed = tab.evaluate(
            "[...document.querySelectorAll('main button, main input, main [tabindex], main [role]')].filter(e =>"
            "!(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim()"
            "|| e.closest('label'))).map(e => e.outerHTML)"
        )
        assert unnamed == []
