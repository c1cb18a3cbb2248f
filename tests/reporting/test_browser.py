"""The report in a real browser: needs Playwright and a Chromium that is installed already."""

from pathlib import Path

import pytest
from browsing import DESKTOP, PHONE, contrast, luminance
from logs import HOSTILE, long_run, write_log

from gpt2.reporting import figures
from gpt2.reporting.figures import report_on
from gpt2.reporting.page import page
from gpt2.reporting.verdict import Band, Reference, Verdict
from gpt2.serve.live import served


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    run = write_log(folder / f"a-run-{'with-a-long-name-' * 6}", long_run(1000), 'n_layer = 12\ndataset = "d"\n')
    (folder / "report.html").write_text(page([report_on(run)], {"n_layer": 12}))
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_fits_its_window_and_draws_its_curves(opened, report_file: str, viewport: dict[str, int]) -> None:
    tab = opened(report_file, viewport)
    assert tab.title().endswith("· gpt2")
    assert tab.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    assert tab.evaluate("[...document.querySelectorAll('.wide')].every(box => box.scrollWidth <= box.clientWidth)")
    curves = "[...document.querySelectorAll('.plot path.train, .plot path.val:not(.dots)')]"
    lengths = tab.evaluate(f"{curves}.map(path => path.getTotalLength())")
    assert len(lengths) == 6  # loss twice, HellaSwag, learning rate, gradient norm, speed
    assert min(lengths) > 900  # the drawing is 1000 wide
    widths = tab.evaluate("[...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width)")
    assert len(widths) == 5
    assert min(widths) > 160
    assert tab.evaluate("parseFloat(getComputedStyle(document.querySelector('.plot .y')).fontSize)") >= 11


def test_several_runs_fit_a_phone(opened, tmp_path: Path) -> None:
    runs = [write_log(tmp_path / f"{n}-{'long-name-' * 8}", long_run(200), "") for n in range(4)]
    (tmp_path / "report.html").write_text(page([report_on(run) for run in runs], {}))
    tab = opened((tmp_path / "report.html").as_uri(), PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    strokes = {
        tab.evaluate(f"getComputedStyle(document.querySelector('.plot .train.s{n}')).stroke") for n in range(4)
    }
    assert len(strokes) == 4


def test_the_x_axis_can_be_switched(opened, report_file: str) -> None:
    """The run has 1000 tokens and half a second per step."""
    tab = opened(report_file)
    lines = tab.locator(".plot path.train").count()
    for axis, title, last in (
        ("tokens", "tokens", "1,000,000"),
        ("time", "minutes of training", ""),
        ("steps", "step", "1,000"),
    ):
        tab.locator(".axes label", has_text=axis).click()
        assert tab.locator(".plot .xtitle").all_inner_texts() == [title] * 5
        tab.locator(".plot").first.focus()
        tab.keyboard.press("End")
        assert tab.locator(".tip").inner_text().startswith(f"{title} {last}")
        assert tab.locator(".plot path.train").count() == lines


def test_the_legend_names_a_band_only_while_it_is_drawn(opened, tmp_path: Path, monkeypatch) -> None:
    band = Band(steps=[0, 500, 1000], low=[4.0, 2.0, 2.0], high=[5.0, 3.0, 3.0], margin=0.1)
    known = Verdict("within", "as known", Reference("a known run", "by hand", match={}, band=band))
    monkeypatch.setattr(figures, "judge", lambda *arguments: known)
    run = write_log(tmp_path / "run", long_run(1000), "n_layer = 12\n")
    (tmp_path / "report.html").write_text(page([report_on(run)], {}))
    tab = opened((tmp_path / "report.html").as_uri())
    others = tab.locator(".legend li:visible").count() - 1
    for axis, drawn in (("tokens", 1), ("time", 0), ("steps", 1)):
        tab.locator(".axes label", has_text=axis).click()
        assert tab.locator(".plot path.band").count() == drawn
        assert tab.locator(".legend li:visible", has_text="a known run").count() == drawn
        assert tab.locator(".legend li:visible").count() == others + drawn


def test_a_term_is_explained_where_it_has_the_focus(opened, report_file: str) -> None:
    tab = opened(report_file, PHONE)
    term = tab.locator("dfn", has_text="MFU").first
    shown = "getComputedStyle(document.querySelector('dl dfn:focus') ?? document.body, '::after').content"
    assert tab.evaluate(shown) == "none"
    term.focus()
    assert "FLOPs" in tab.evaluate(shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_curves_stand_out_in_both_colour_schemes(opened, report_file: str, scheme: str) -> None:
    """WCAG 2 asks for 4.5 of text and 3 of graphics."""
    tab = opened(report_file, PHONE, scheme)

    def seen(selector: str, style: str) -> str:
        return tab.evaluate(f"getComputedStyle(document.querySelector({selector!r}))[{style!r}]")

    card = seen("figure", "backgroundColor")
    assert (luminance(card) > 0.5) == (scheme == "light")
    for selector, style, least in (
        ("body", "color", 4.5), (".legend", "color", 4.5), (".plot .x", "color", 4.5), (".best td", "color", 4.5),
        (".plot .train", "stroke", 3), (".plot .val", "stroke", 3),
    ):  # fmt: skip
        assert contrast(seen(selector, style), card) >= least, selector


def test_values_are_read_with_the_pointer_and_with_keys(opened, report_file: str) -> None:
    tab = opened(report_file)
    plot = tab.locator(".plot").first
    box = plot.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    told = tab.locator(".tip").inner_text()
    assert abs(int(told.split()[1].replace(",", "")) - 500) <= 5
    assert "validation" in told
    tab.mouse.move(5, 5)
    assert tab.locator(".tip").count() == 0
    plot.focus()
    tab.keyboard.press("End")
    assert tab.locator(".tip").inner_text().startswith("step 1,000\n")
    tab.keyboard.press("ArrowLeft")
    assert abs(int(tab.locator(".tip").inner_text().split()[1]) - 980) <= 5
    tab.keyboard.press("Escape")
    assert tab.locator(".tip").count() == 0


def test_everything_to_use_is_reached_with_tab(opened, report_file: str) -> None:
    tab = opened(report_file)
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.className || document.activeElement.localName"))
    assert {"plot", "wide", "summary"} <= reached


def test_what_a_model_wrote_is_shown_and_not_run(opened, report_file: str) -> None:
    tab = opened(report_file)
    assert HOSTILE in tab.locator("details[open] pre").inner_text()
    assert "owned" not in tab.title()
    assert tab.locator("main script, main img").count() == 0


def test_the_live_page_follows_without_losing_the_place(opened, tmp_path: Path) -> None:
    run = write_log(tmp_path / "run", long_run(200))
    with served(run, {}, 0) as address:
        tab = opened(address, PHONE)
        assert "200" in tab.locator(".tiles").inner_text()
        tab.locator("details summary").nth(2).click()  # the sample of step 100
        tab.locator("#hardware").scroll_into_view_if_needed()
        before = tab.evaluate("scrollY")
        assert before > 500
        write_log(run, long_run(250))
        tab.locator(".tiles", has_text="250").wait_for(timeout=20_000)
        assert tab.locator("#sample-250").count() == 1
        assert tab.locator("#sample-100").get_attribute("open") is not None
        assert tab.locator("#hardware").bounding_box()["y"] < PHONE["height"]
        assert tab.evaluate("scrollY") >= before
    tab.locator("html.lost").wait_for(timeout=20_000)
