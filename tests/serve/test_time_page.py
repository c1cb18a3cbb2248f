"""The view Time of the page in a real browser: the losses of every step, the slider, links, and a phone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from browsing import PHONE, copied_link, saved
from serve.conftest import Running

import gpt2
from gpt2.formats.run_folder import weights_by_step
from gpt2.inside.predictions import losses

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]
TEXT = "the cat sat on a mat"


def mean_loss(path: Path, text: str) -> str:
    model, tokenizer = gpt2.load(path)
    return f"{float(losses(model, torch.tensor(tokenizer.encode(text))).loss.mean()):.3f}"


def at_step(tab: "Page", step: int) -> None:
    """Wait until the views are those of a step, complete."""
    tab.locator("#view-Time .when", has_text=f"Step{step} ·").wait_for()
    tab.locator(f"#view-Time .views[data-step='{step}']").wait_for()


def shown(address: str, opened: Open) -> "Page":
    """The view with a text, at the end of the run."""
    tab = opened(f"{address}/#Time")
    show(tab)
    return tab


def show(tab: "Page") -> None:
    """Let the view read the text, and wait until it is complete."""
    tab.locator("#time-text").fill(TEXT)
    tab.get_by_role("button", name="Show").click()
    at_step(tab, 10)


def test_the_slider_shows_how_a_run_learned_a_text(learned: tuple[Running, Path], opened: Open) -> None:
    one, run = learned
    tab = shown(one.address, opened)
    picture, slider = tab.locator(".curve svg"), tab.get_by_role("slider", name="Step", exact=True)
    assert picture.locator("circle.of-text").count() == 7
    assert picture.locator("text.chosen").text_content() == "10"
    chosen = tab.locator("#view-Time .tokens").first.locator("[aria-selected=true]")
    heads = tab.locator("#view-Time .heads button")
    heads.nth(3).click()
    tab.locator("#view-Time .tokens").first.locator("[data-token='5']").click()
    slider.focus()
    for key, step in (("ArrowLeft", 8), ("ArrowLeft", 5), ("Home", 0)):
        tab.keyboard.press(key)
        at_step(tab, step)
        own = mean_loss(weights_by_step(run)[step], TEXT)
        assert own in slider.get_attribute("aria-valuetext")
        assert own in tab.locator("#view-Time .tiles").inner_text()
    titles = ["The text", "Least expected tokens", "Attention", "Logit lens", "Attribution"]
    assert tab.locator("#view-Time h2").all_inner_texts() == [
        "Result of tiny",
        "Loss of the text over the run",
        *titles,
    ]
    # the token, the head and the focus stay where they were
    assert chosen.get_attribute("data-token") == "5"
    assert heads.nth(3).get_attribute("aria-pressed") == "true"
    assert tab.evaluate("document.activeElement.id") == "time-step"
    assert "the token “a”" in tab.locator("#view-Time .legend").first.inner_text()
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] - 20, "y": 50})
    at_step(tab, 10)
    tab.wait_for_url(re.compile("#Time/5/"))


def test_a_link_restores_the_step_and_fits_a_phone(learned: tuple[Running, Path], opened: Open) -> None:
    one, _ = learned
    tab = shown(one.address, opened)
    tab.get_by_role("slider", name="Step", exact=True).press("ArrowLeft")
    at_step(tab, 8)
    again = opened(copied_link(tab), PHONE, "dark")
    at_step(again, 8)
    assert again.locator("#time-text").input_value() == TEXT
    assert again.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    unnamed = again.evaluate(
        "[...document.querySelectorAll('#view-Time :is(button, input, textarea, svg, [role=option])')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_the_file_of_a_step_has_the_losses_of_all_steps(
    learned: tuple[Running, Path], opened: Open, tmp_path: Path
) -> None:
    one, run = learned
    tab = shown(one.address, opened)
    slider = tab.get_by_role("slider", name="Step", exact=True)
    slider.press("ArrowLeft")
    at_step(tab, 8)
    file = opened(saved(tab, tmp_path / "step.html") + "#Time/5")
    file.get_by_text("The other views are those of step 8.").wait_for()
    said, legend = file.locator("#view-Time .when span"), file.locator("#view-Time .legend")
    assert said.inner_text() == tab.locator("#view-Time .when span").inner_text()
    assert "the token “a”" in legend.inner_text()
    file.get_by_role("slider", name="Step", exact=True).press("Home")
    assert mean_loss(weights_by_step(run)[0], TEXT) in said.inner_text()
    file.get_by_role("tab", name="Read").click()
    file.locator("#view-Read .tiles", has_text=mean_loss(weights_by_step(run)[8], TEXT)).wait_for()


def test_a_model_is_compared_with_an_earlier_step_of_its_run(
    learned: tuple[Running, Path], opened: Open, tmp_path: Path
) -> None:
    one, run = learned
    tab = opened(f"{one.address}/#Read")
    tab.locator("#compare").select_option(label="tiny, step 8")
    tab.locator("#read-text").fill(TEXT)
    tab.get_by_role("button", name="Read", exact=True).click()
    tab.locator("#view-Read .pair .worst").nth(1).wait_for()
    means = [tile.inner_text() for tile in tab.locator("#view-Read .tiles", has_text="mean loss").all()]
    for path, shown in zip((run, weights_by_step(run)[8]), means, strict=True):
        assert mean_loss(path, TEXT) in shown
    file = opened(saved(tab, tmp_path / "compared.html"))
    file.locator(".pair .worst").nth(1).wait_for()
    assert file.locator("h1").inner_text() == "tiny and tiny, step 8"
    assert [tile.inner_text() for tile in file.locator(".tiles").all()] == means
    again = opened(copied_link(tab))
    again.locator("#view-Read .whose", has_text="Result of tiny and tiny, step 8").wait_for()
    again.get_by_label("Model").select_option("other")
    assert again.locator("#compare option").all_inner_texts() == ["no other model", "tiny"]
    again.locator("#compare").select_option("tiny")  # the same weights, so that neither expects a token more
    again.get_by_role("button", name="Read", exact=True).click()
    again.locator("#view-Read .whose", has_text="Result of other and tiny").wait_for()
    legend = again.locator("#view-Read .legend", has_text="expects it more").inner_text()
    assert "other expects it more (0 of " in legend and "tiny expects it more (0)" in legend


def test_a_result_follows_its_slider_after_another_text_was_refused(
    learned: tuple[Running, Path], browser: "Browser"
) -> None:
    with browser.new_context() as context:
        tab = context.new_page()
        tab.goto(f"{learned[0].address}/#Time")
        show(tab)
        tab.locator("#time-text").fill("t")
        tab.get_by_role("button", name="Show").click()
        tab.locator("#view-Time .failed", has_text="The text has 1 token").wait_for()
        assert tab.locator("#view-Time .outdated", has_text=f"for the text “{TEXT}”").is_visible()
        tab.get_by_role("slider", name="Step", exact=True).press("ArrowLeft")
        at_step(tab, 8)


def test_a_model_that_is_no_run_says_so(learned: tuple[Running, Path], opened: Open) -> None:
    tab = opened(f"{learned[0].address}/#Time")
    assert tab.get_by_role("button", name="Show").is_enabled()
    tab.get_by_label("Model").select_option("other")
    assert "is not the folder of a run" in tab.locator("#view-Time .warning").inner_text()
    assert tab.get_by_role("button", name="Show").is_disabled()
    tab.get_by_role("tab", name="Inside").click()
    assert tab.get_by_role("button", name="Look inside").is_enabled()
