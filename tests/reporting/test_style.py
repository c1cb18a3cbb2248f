"""Pages and picture files look alike."""

from pathlib import Path

import pytest
from logs import long_run, write_log

from gpt2.reporting import style
from gpt2.reporting.figures import report_on
from gpt2.reporting.glossary import TERMS, explained
from gpt2.reporting.page import page
from gpt2.reporting.picture import plot_positions, plot_runs


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_pictures_have_the_colours_of_pages(palette: style.Palette, tmp_path: Path) -> None:
    run = write_log(tmp_path / "a$run_{$", long_run(100))
    plot_runs([run], tmp_path / "a.svg", dark=palette is style.DARK)
    picture, html = (tmp_path / "a.svg").read_text(), page([report_on(run)], {})
    for name in ("card", "quiet", "grid", "train", "val", "third"):
        assert getattr(palette, name) in picture, name
        assert f"--{name}:{getattr(palette, name)};" in html, name
    assert "Loss, nats per token (log scale)" in picture
    assert "(log scale)" in html


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_every_series_stands_out(palette: style.Palette) -> None:
    """WCAG 2 asks for a contrast of 3 of graphics."""

    def luminance(colour: str) -> float:
        values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in palette.series:
        brighter, darker = sorted((luminance(colour), luminance(palette.card)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 3, colour


def test_the_loss_by_position_is_drawn(tmp_path: Path) -> None:
    plot_positions([None, 3.0, 2.5, 2.25], "a $model_{", tmp_path / "a.svg", dark=True)
    picture = (tmp_path / "a.svg").read_text()
    assert "<!-- a $model_{ -->" in picture
    assert "number of earlier tokens (log scale)" in picture


@pytest.mark.parametrize(("size", "text"), [(3 << 29, "1.5 GiB"), (327 << 20, "327 MiB"), (1000, "0.000954 MiB")])
def test_memory_has_a_unit(size: int, text: str) -> None:
    assert style.memory(size) == text


def test_terms_are_explained_and_everything_else_is_text() -> None:
    html = explained("MFU <b> of nats per token")
    assert html.startswith("<dfn tabindex=0 data-about=")
    assert "&lt;b&gt; of <dfn" in html
    assert html.count("<dfn") == 2
    assert all(explained(term).endswith(f">{term}</dfn>") for term in TERMS)
