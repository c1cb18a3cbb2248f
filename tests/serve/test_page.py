"""The page of `gpt2 serve` in a real browser: what it shows is what the API says; pointer, keys and links."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browsing import PHONE, copied_link
from generation.models import random_model
from serve.conftest import Running, SlowEngine, chat_tokenizer, running

from gpt2.generation.weights import for_decoding
from gpt2.inside.predictions import losses

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

Open = Callable[..., "Page"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> שלום 🙂"


@pytest.fixture(scope="module")
def two() -> Iterator[Running]:
    """A server with two models."""
    other = random_model(block_size=128)
    for parameter in other.parameters():
        parameter.data *= 0.9
    with running(tokenizer=chat_tokenizer(), others={"other": other}) as one:
        yield one


def write(tab: "Page", prompt: str = "the cat", seed: int = 7, tokens: int = 12) -> "Locator":
    """Let the model write, and return the tokens."""
    tab.get_by_label("Prompt").fill(prompt)
    for label, value in (("Temperature", 1), ("Tokens", tokens), ("Seed", seed)):
        tab.get_by_label(label, exact=True).fill(str(value))
    tab.get_by_role("button", name="Write", exact=True).click()
    finished(tab, tokens)
    return tab.locator(".written [data-token]")


@contextmanager
def slow_writing(opened: Open) -> Iterator[tuple[Running, "Page"]]:
    """A server that writes slowly, and its page while a text of 900 tokens is written."""

    class Slower(SlowEngine):
        seconds = 0.03

    with running(engine=Slower, block_size=1024) as one:
        tab = opened(one.address)
        tab.get_by_label("Tokens", exact=True).fill("900")
        tab.get_by_label("Seed").fill("7")  # with some seeds a token is the second likeliest, which then is no other
        tab.get_by_role("button", name="Write", exact=True).click()
        yield one, tab


def finished(tab: "Page", tokens: int) -> None:
    """Wait until a text is complete."""
    tab.locator("#view-Write .status", has_text=re.compile(rf"^{tokens} tokens in .* s, seed")).wait_for()


def completed(one: Running, ids: list[int], n: int, seed: int = 7) -> dict[str, Any]:
    """What the API says about the tokens after a prompt."""
    fields = {"prompt": ids, "max_tokens": n, "seed": seed, "logprobs": 5, "temperature": 1}
    return one.post(**fields).json()["choices"][0]["logprobs"]


def name(token: str) -> str:
    """A token of the API as the page writes it."""
    shown = token.removeprefix("bytes:") if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token) else token
    seen = {10: "⏎", 9: "⇥", 13: "␍", 32: "␣", 127: "�"}
    return f"“{shown.translate(dict.fromkeys(range(32), '�') | seen)}”"


def labels(tokens: "Locator") -> list[str]:
    """The names of tokens that are shown, without their probabilities."""
    said = tokens.evaluate_all("all => all.map(e => e.ariaLabel)")
    return [label.rpartition(", probability")[0] for label in said]


def test_a_text_is_shaded_by_the_probabilities_of_the_api(two: Running, opened: Open) -> None:
    tokens = write(opened(two.address))
    own = completed(two, list(b"the cat"), 12)
    assert labels(tokens) == [name(token) for token in own["tokens"]]
    levels = [f"v{round(8 * min(1, -value / math.log(10) / 4))}" for value in own["token_logprobs"]]
    assert tokens.evaluate_all("all => all.map(e => e.classList[0])") == levels
    assert len(set(levels)) > 2


def test_another_token_is_taken_with_keys_and_the_first_text_stays(two: Running, opened: Open) -> None:
    """The tokens of this model are bytes, most of them parts of characters, so only ids continue them rightly."""
    tab = opened(two.address)
    tokens = write(tab)
    before, own = labels(tokens), completed(two, list(b"the cat"), 12)
    tab.locator(".written").focus()
    tokens.nth(8).hover()  # keys are about the chosen token, wherever the pointer rests
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
    assert tokens.nth(3).get_attribute("aria-selected") == "true"
    top = own["top_logprobs"][3]
    others = sorted(top, key=lambda token: -top[token])
    buttons = tab.locator(".alternatives button")
    assert buttons.locator(".name").all_inner_texts() == [name(token) for token in others]
    tab.keyboard.press("Enter")
    tab.keyboard.press("ArrowDown")
    number = 1
    if others[number] == own["tokens"][3]:
        tab.keyboard.press("ArrowDown")
        number = 2
    tab.keyboard.press("Enter")
    finished(tab, 12)
    taken = own["top_token_ids"][3][others[number]]
    rest = completed(two, [*b"the cat", *own["token_ids"][:3], taken], 12)
    expected = [*own["tokens"][:3], others[number], *rest["tokens"]]
    assert labels(tokens) == [name(token) for token in expected]
    assert tab.evaluate("document.activeElement.className") == "tokens written"
    tree = tab.get_by_role("list", name="Branches").get_by_role("button")
    assert tree.count() == 2 and "from token 4" in tree.nth(1).inner_text()
    assert tree.nth(1).get_attribute("aria-current") == "true"
    tree.first.press("Enter")
    assert labels(tokens) == before
    assert tree.first.get_attribute("aria-current") == "true"
    tokens.nth(3).click()
    tab.keyboard.press(str(number + 1))  # the branch is there already
    assert tree.count() == 2 and labels(tokens) == [name(token) for token in expected]


def test_alternatives_are_shown_under_the_pointer_and_taken_with_it(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tokens, panel = write(tab), tab.locator(".side .panel")
    own = completed(two, list(b"the cat"), 12)
    tokens.nth(5).hover()
    assert "token 6" in panel.inner_text()
    tab.get_by_label("Prompt").hover()
    assert "Choose a token" in panel.inner_text()
    tokens.nth(2).click()
    assert "token 3" in panel.inner_text()
    other = panel.locator("button:not(.own)").first
    taken = other.locator(".name").inner_text()
    other.click()
    finished(tab, 12)
    assert labels(tokens)[:3] == [*map(name, own["tokens"][:2]), taken]


def test_a_text_is_continued_where_it_ends(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tokens = write(tab, "", tokens=5)
    tab.get_by_role("button", name="Continue").click()
    tab.locator(".written [data-token='9']").wait_for()
    finished(tab, 5)
    first = completed(two, [256], 5)
    second = completed(two, [256, *first["token_ids"]], 5)
    assert labels(tokens) == [name(token) for token in first["tokens"] + second["tokens"]]


def test_stop_ends_the_request_and_typing_goes_on(opened: Open) -> None:
    with slow_writing(opened) as (one, tab):
        tab.locator(".written [data-token='2']").wait_for()
        tab.get_by_label("Prompt").press_sequentially("typed")
        assert tab.get_by_label("Prompt").input_value() == "typed"
        assert not one.is_empty
        tab.get_by_role("button", name="Stop").click()
        tab.locator("#view-Write .status", has_text="Stopped.").wait_for()
        assert one.becomes(lambda: one.is_empty)
        shown = tab.locator(".written [data-token]").count()
        assert 2 < shown < 900
        tab.get_by_role("button", name="Continue").wait_for()


def test_a_text_is_read_by_two_models(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tab.get_by_role("tab", name="Read").click()
    tab.locator("#read-text").fill(HOSTILE)
    tab.get_by_role("button", name="Read", exact=True).click()
    sections = tab.locator(".pair > section")
    sections.nth(1).wait_for()
    idx = torch.tensor(list(HOSTILE.encode()))
    both = [losses(one.decoder.engine.model, idx).loss for one in two.api.models.values()]
    for section, loss in zip(sections.all(), both, strict=True):
        assert f"{float(loss.mean()):.3f}" in section.locator(".tiles").inner_text()
    text = tab.locator(".result > div > .tokens")
    text.focus()
    for _ in range(4):
        tab.keyboard.press("ArrowRight")
    said = tab.locator(".result > div > .readout").inner_text()
    first, second = (f"{float(loss[4]):.2f}" for loss in both)
    assert said.startswith(f"“i”: tiny {first} nats, other {second} nats")
    sign = "plus" if both[0][4] < both[1][4] else "minus"
    assert sign in text.locator("[data-token='5']").get_attribute("class")
    for panel in sections.locator(".panel").all():
        assert "“i” · token 6" in panel.inner_text()
    assert tab.locator("main img, main script").count() == 0
    radios = sections.first.locator(".axes label", has_text="rank")
    radios.click()
    assert sections.nth(1).locator("input:checked").get_attribute("value") == "loss"


def test_a_text_is_looked_into(two: Running, opened: Open) -> None:
    tab = opened(f"{two.address}/#Inside")
    tab.locator("#inside-text").fill("a text to read")
    tab.get_by_role("button", name="Look inside").click()
    tab.get_by_role("grid", name="Attribution, layers by heads").wait_for()
    assert tab.locator("#view-Inside h2").all_inner_texts() == [
        "Result of tiny",
        "Attention",
        "Logit lens",
        "Attribution",
    ]
    tab.get_by_label("Second text").fill("a test to read")
    tab.get_by_role("button", name="Look inside").click()
    tab.get_by_role("grid", name="Patching of heads, layers by heads").wait_for()
    grid = tab.get_by_role("grid", name="Patching of the residual stream")
    assert grid.locator("thead th").nth(1).inner_text() == "x ← s"
    assert grid.locator("tbody tr").last.locator("td").first.inner_text() == "100"
    assert tab.locator("#view-Read textarea").input_value() == "a text to read"  # both views have the same text


def test_a_link_restores_the_text_its_branches_and_the_token(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tokens = write(tab, HOSTILE)
    tokens.nth(3).click()
    tab.keyboard.press("2")
    tab.keyboard.press("5")
    finished(tab, 12)
    tab.keyboard.press("End")
    before, shown = labels(tokens), tokens.evaluate_all("all => all.map(e => e.className + e.textContent)")
    tab.get_by_label("Model", exact=True).select_option("other")  # the link names the model and the settings
    tab.get_by_label("Temperature", exact=True).fill("0.5")  # that the text is from
    link = copied_link(tab)
    assert f"#Write/{len(before) - 1}/" in link and len(link) < 1000
    again = opened(link)
    again.locator("#view-Write .status", has_text="from the link").wait_for()
    restored = again.locator(".written [data-token]")
    assert labels(restored) == before
    assert restored.evaluate_all("all => all.map(e => e.className + e.textContent)") == shown
    assert restored.last.get_attribute("aria-selected") == "true"
    assert again.get_by_label("Prompt").input_value() == HOSTILE
    assert again.locator(".written .prompt").inner_text() == HOSTILE
    assert again.locator(".tree button").all_inner_texts() == tab.locator(".tree button").all_inner_texts()
    assert again.get_by_label("Temperature", exact=True).input_value() == "0.5"
    assert again.locator("main img, main script").count() == 0


def test_a_reload_keeps_all_texts_and_back_doubles_none(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    tree, address = tab.locator(".tree button"), tab.url
    write(tab)
    write(tab, HOSTILE).nth(3).click()
    tab.keyboard.press("2")
    finished(tab, 12)
    before = tree.all_inner_texts()
    assert len(before) == 3
    copied_link(tab)
    tab.reload()
    tab.locator("#view-Write .status", has_text="3 texts from the link").wait_for()
    assert tree.all_inner_texts() == before
    assert tree.nth(2).get_attribute("aria-current") == "true"
    tree.first.click()
    assert tab.locator(".written .prompt").inner_text() == "the cat"
    restored = copied_link(tab)
    tab.evaluate(f"location.href = '{address}#Write'")
    tree.first.wait_for(state="detached")
    tab.go_back()
    tree.first.wait_for()
    assert tab.url == restored and tree.all_inner_texts() == before


def test_a_text_that_was_stopped_by_another_is_not_said_to_be_written(opened: Open) -> None:
    with slow_writing(opened) as (_, tab):
        tab.locator(".written [data-token='2']").click()
        tab.keyboard.press("2")
        tab.locator(".tree button").nth(1).wait_for()
        first, second = tab.locator(".tree button small").all_inner_texts()
        assert first.endswith(" tokens") and second.endswith("writing …")


@pytest.mark.parametrize("view", ["Read", "Inside"])
def test_a_link_restores_a_view_of_a_text(two: Running, opened: Open, view: str) -> None:
    tab = opened(f"{two.address}/#{view}")
    tab.get_by_label("Model").select_option("other")
    panel = tab.locator(f"#view-{view}")
    panel.locator("textarea").first.fill("a text to read")
    panel.locator("button.main").click()
    tokens = panel.locator(".result .tokens").first
    tokens.focus()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url(re.compile(rf"#{view}/13/"))
    again = opened(tab.url)
    chosen = again.locator(f"#view-{view} .tokens").first.locator("[aria-selected=true]")
    chosen.wait_for()
    assert chosen.get_attribute("data-token") == "13"
    assert again.get_by_label("Model").input_value() == "other"
    assert again.locator("#compare").input_value() == tab.locator("#compare").input_value()


def test_a_broken_link_says_so(two: Running, opened: Open) -> None:
    tab = opened(f"{two.address}/#Read/1/abc")
    tab.locator("main > .status", has_text="cannot be restored").wait_for()
    assert tab.get_by_role("button", name="Write", exact=True).is_enabled()


def test_views_are_saved_as_files(two: Running, opened: Open, tmp_path: Path) -> None:
    tab = opened(two.address)
    tokens = write(tab, HOSTILE)
    with tab.expect_download() as written:
        tab.get_by_role("button", name="Save").click()
    written.value.save_as(tmp_path / "written.html")
    tab.get_by_role("tab", name="Inside").click()  # which has the text that was written
    tab.locator("#inside-text").fill("a text to read")
    tab.get_by_role("button", name="Look inside").click()
    tab.locator("#view-Inside h2").first.wait_for()
    with tab.expect_download() as read:
        tab.get_by_role("button", name="Save").click()
    read.value.save_as(tmp_path / "read.html")
    still = opened((tmp_path / "written.html").as_uri())
    shown = still.locator(".written > span")
    assert shown.first.inner_text() == HOSTILE
    assert still.locator(".written [title]").count() == tokens.count() == 12
    assert still.locator("main img, script, [role=option]").count() == 0
    assert "seed 7" in still.locator("main").inner_text()
    colours = "all => all.map(e => getComputedStyle(e).backgroundColor)"
    assert still.locator(".written [title]").evaluate_all(colours) == tokens.evaluate_all(colours)
    lens = opened((tmp_path / "read.html").as_uri())
    assert lens.locator("#view-Read .tokens").inner_text() == "a text to read▸"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone(two: Running, opened: Open, scheme: str) -> None:
    tab = opened(two.address, PHONE, scheme)
    tab.locator(".settings summary").click()
    write(tab, "a" * 60)
    tab.locator(".written [data-token]").first.click()
    for view, button in (("Write", None), ("Read", "Read"), ("Inside", "Look inside")):
        tab.get_by_role("tab", name=view).click()
        if button:
            tab.get_by_role("button", name=button, exact=True).click()
            tab.locator(f"#view-{view} h2").last.wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"], view
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(18, 21, 27)") == (scheme == "dark")


def test_names_of_all_that_can_be_used_are_known_to_screen_readers(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    write(tab)
    tab.locator(".written [data-token]").first.click()
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('main :is(button, input, select, textarea, [tabindex], [role=option])')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"prompt", "model", "set-temperature", "set-seed", "main", "tab-Write"} <= reached


def test_sliders_and_fields_agree(two: Running, opened: Open) -> None:
    tab = opened(two.address)
    slider, field = tab.get_by_label("Temperature, slider"), tab.get_by_label("Temperature", exact=True)
    field.fill("1.5")
    assert slider.input_value() == "1.5"
    slider.press("ArrowRight")
    assert field.input_value() == "1.55"
    field.fill("-3")
    field.blur()
    assert field.input_value() == "1.55"
    assert tab.get_by_label("Tokens, slider").get_attribute("max") == "128"


def test_a_key_is_asked_for_and_errors_are_shown(browser: "Browser") -> None:
    with running(
        api_key="sesame", hosts=None, network=for_decoding(random_model(block_size=32), quantize="int8")
    ) as one:
        tab = browser.new_page()
        tab.goto(one.address)
        tab.get_by_role("textbox", name="Key").fill("sesam")
        tab.keyboard.press("Enter")
        tab.get_by_text("does not accept this key").wait_for()
        tab.get_by_role("textbox", name="Key").fill("sesame")
        tab.keyboard.press("Enter")
        write(tab, tokens=5)
        assert tab.evaluate("sessionStorage.getItem('gpt2-api-key')") == "sesame"
        assert "sesame" not in tab.url
        tab.get_by_label("Prompt").fill("x" * 32)
        tab.get_by_role("button", name="Write", exact=True).click()
        tab.locator("#view-Write .failed", has_text="The model sees 32 tokens").wait_for()
        tab.get_by_role("tab", name="Inside").click()
        assert "are not in float32" in tab.locator("#view-Inside .warning").inner_text()
        assert tab.get_by_role("button", name="Look inside").is_disabled()
        tab.close()
