import html
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.reporting.charts import Band, Chart, Line, Scale
from gpt2.reporting.style import short
from gpt2.reporting.svg import svg


def test_ticks_are_round_and_inside() -> None:
    assert Scale(0, 2000).ticks(5) == [0, 500, 1000, 1500, 2000]
    assert Scale(0.003, 0.0101).ticks(6) == pytest.approx([0.004, 0.006, 0.008, 0.01])
    assert Scale(0.05, 2000, log=True).ticks(6) == [0.1, 1, 10, 100, 1000]
    wide = Scale(1.5, 4.2, log=True)
    assert {2, 4} <= {round(v, 6) for v in wide.ticks(6)}
    assert all(wide(b) - wide(a) > 0.08 for a, b in zip(wide.ticks(6), wide.ticks(6)[1:], strict=False))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1.5, 11, [1.5, 2, 3, 5, 7, 10]),
        (2.7, 11.2, [4, 6, 8, 10]),
        (1.57, 2.95, [1.6, 1.8, 2, 2.2, 2.4, 2.6, 2.8]),
        (10.3, 10.6, [10.3, 10.35, 10.4, 10.45, 10.5, 10.55, 10.6]),
        (0.1, 10, [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (1, 1e12, [1, 100, 1e4, 1e6, 1e8, 1e10, 1e12]),
    ],
)
def test_the_ticks_of_a_logarithmic_axis_follow_one_rule(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, log=True).ticks(6) == pytest.approx(ticks)


@given(st.floats(-50, 30), st.floats(0.004, 40), st.sampled_from([5, 6]))
def test_a_logarithmic_axis_has_no_long_part_without_a_tick(power: float, decades: float, most: int) -> None:
    scale = Scale(10**power, 10 ** (power + decades), log=True)
    at = [scale(tick) for tick in scale.ticks(most)]
    assert 2 <= len(at) <= most + 1
    assert min(right - left for left, right in itertools.pairwise(at)) >= 0.5 / most
    assert max(right - left for left, right in itertools.pairwise([0.0, *at, 1.0])) <= 0.7


def test_a_logarithmic_scale_goes_by_ratios() -> None:
    assert Scale(1, 100, log=True)(10) == pytest.approx(0.5)
    assert Scale(0, 100)(10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (6e-4, "6e-4"),
        (0.25, "0.25"),
        (500, "500"),
        (2000, "2k"),
        (1.536e6, "1.536M"),
        (9.961e9, "9.961B"),
        (1e13, "10T"),
    ],
)
def test_numbers_at_an_axis_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_points_lie_where_their_values_are() -> None:
    """From 0, with a sixteenth of room above: 8 is 8.48 high, so that 4 lies at 400·(1 - 4/8.48)."""
    chart = Chart("t", [Line("a", "train", [0, 5, 10], [0, 4, 8])], from_zero=True)
    assert 'd="M0 400 500 211.3 1000 22.6"' in svg(chart, 10)


def test_an_axis_can_fit_what_comes_after_the_start() -> None:
    """Of 8, 4, 2 the last two fill the axis but for 0.06·2 on both sides; the first lies above it."""
    chart = Chart("t", [Line("a", "train", [0, 5, 10], [8, 4, 2])], fit_from=5)
    assert 'd="M0 -692.9 500 21.4 1000 378.6"' in svg(chart, 10)


def test_the_values_themselves_travel_with_the_chart() -> None:
    drawn = svg(Chart("t", [Line("<b>", "val", [0, 10], [1.23456, 8])], log=True), 10)
    found = re.search(r'data-lines="([^"]*)"', drawn)
    assert found
    assert json.loads(html.unescape(found[1]))["lines"] == [["<b>", "val", [0, 10], [1.23456, 8]]]
    assert "<b>" not in drawn


def test_what_a_logarithm_does_not_have_is_left_out() -> None:
    drawn = svg(Chart("t", [Line("a", "train", [0, 1, 2], [0.0, 1.0, 10.0])], log=True), 2)
    assert "nan" not in drawn
    assert "Nothing recorded yet" in svg(Chart("t", [Line("a", "train", [0], [0.0])], log=True), 2)


def test_one_point_and_a_constant_can_be_drawn() -> None:
    assert 'class="train dots"' in svg(Chart("t", [Line("a", "train", [1], [3.0])]), 1)
    assert "M500 200h0" in svg(Chart("t", [Line("a", "val", [1], [0.0])]), 2)


@pytest.mark.parametrize("log", [False, True])
def test_a_reference_band_ends_where_the_axes_end(log: bool) -> None:
    """Its steps go on to 20, and its values from 0.01 to 50, where the axes end at 10 and at about 2 and 4."""
    band = Band("known", [0.0, 5.0, 10.0, 15.0, 20.0], [0.01, 2.5, 3.0, 0.01, 2.0], [50.0, 3.5, 50.0, 50.0, 3.0])
    drawn = svg(Chart("t", [Line("a", "val", [0, 10], [2, 4])], log=log, band=band), 10)
    path = re.search(r"<path class=band d=\"M(.*?)Z\"", drawn)
    assert path
    numbers = [float(number) for number in path[1].split()]
    xs, ys = numbers[::2], numbers[1::2]
    assert xs == [0, 500, 1000, 1000, 500, 0]
    assert (min(ys), max(ys)) == (0, 400)
