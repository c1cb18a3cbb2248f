import json
import random
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.runlog.curves import axis_position, seconds_worked, series, smooth, smoothing_for, thin, time_unit
from gpt2.runlog.records import read_log


def test_smoothing_starts_without_a_bias_and_keeps_a_constant() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])
    assert smooth([1.0, 3.0], 0.0) == [1.0, 3.0]
    assert smooth([], 0.9) == []
    assert smoothing_for(10) == pytest.approx(0.6)
    assert smoothing_for(20_000) == pytest.approx(1 - 1 / 200)


def test_thinning_keeps_both_ends_and_every_spike() -> None:
    rng = random.Random(0)
    ys = [rng.random() for _ in range(50_000)]
    ys[0], ys[12_345], ys[40_000], ys[-1] = 0.5, 9.0, -9.0, 0.25
    xs, thinned = thin(list(range(50_000)), ys, 100)
    assert len(xs) <= 202
    assert xs == sorted(xs)
    assert dict(zip(xs, thinned, strict=True)).items() >= {0: 0.5, 12_345: 9.0, 40_000: -9.0, 49_999: 0.25}.items()
    assert all(ys[int(x)] == y for x, y in zip(xs, thinned, strict=True))


def test_few_points_are_not_thinned() -> None:
    assert thin([1, 2, 3], [3.0, 1.0, 2.0], 2) == ([1, 2, 3], [3.0, 1.0, 2.0])


RECORDS = [
    {"event": "start", "step": 0, "time": 1000.0, "tokens": 0},
    {"event": "eval", "step": 0, "time": 1002.0, "val_loss": 4.0, "seconds": 2.0},
    {"event": "train", "step": 1, "time": 1012.0, "tokens": 100, "tokens_per_second": 10.0, "loss": 3.0},
    {"event": "checkpoint", "step": 1, "time": 1015.0, "seconds": 3.0},
    {"event": "resume", "step": 1, "time": 9000.0, "tokens": 100},
    {"event": "skip", "step": 2, "time": 9005.0, "tokens": 200, "tokens_per_second": 20.0, "loss": None},
    {"event": "train", "step": 3, "time": 9007.0, "tokens": 300, "tokens_per_second": 50.0, "loss": 2.0},
]


def test_time_passes_only_while_a_run_works() -> None:
    assert seconds_worked(RECORDS) == [0, 2, 12, 15, 15, 20, 22]
    at = axis_position(RECORDS, "time", {}, "r")
    assert [at(step) for step in (0, 1, 2, 3, 7)] == [0, 15, 20, 22, 22]


def test_time_of_an_update_without_a_rate_is_by_the_clock() -> None:
    update = {"event": "train", "loss": 1.0}
    records = [
        update | {"step": 1, "time": 10.0, "tokens": 100, "tokens_per_second": 10.0},
        update | {"step": 2, "time": 5010.0, "tokens": 200, "tokens_per_second": 0.0},
        update | {"step": 3, "time": 5020.0, "tokens": 300, "tokens_per_second": 10.0},
        update | {"step": 4, "time": 5025.0, "tokens": 400, "tokens_per_second": None},
    ]
    assert seconds_worked(records) == [0, 5000, 5010, 5015]


def test_steps_and_tokens_are_axes_too() -> None:
    assert axis_position(RECORDS, "steps", {}, "r")(3) == 3
    assert [axis_position(RECORDS, "tokens", {}, "r")(step) for step in range(4)] == [0, 100, 200, 300]


def test_flops_are_those_of_the_model() -> None:
    """By hand: N = 7·4 + 2·(12·16 + 2·4) + 4 = 432 without biases and positions; attention 12·2·4·8 = 768."""
    settings = {"vocab_size": 7, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 4, "bias": False, "seed": 1}
    assert axis_position(RECORDS, "flops", settings, "r")(3) == 300 * (6 * 432 + 768)


def test_an_axis_that_a_log_cannot_have_is_said() -> None:
    with pytest.raises(UserError, match="r does not record vocab_size, from which --x=flops"):
        axis_position(RECORDS, "flops", {}, "r")
    foreign = [{"event": "train", "step": 1, "time": 0.0, "loss": 1.0}]
    with pytest.raises(UserError, match="r does not record tokens_per_second, from which --x=time"):
        axis_position(foreign, "time", {}, "r")
    assert axis_position(foreign, "steps", {}, "r")(1) == 1


def test_time_goes_on_where_a_resume_does_updates_again(tmp_path: Path) -> None:
    """Update 3 is done twice; what was first made of it no longer counts, and no step lies before an earlier one."""
    again = [{"event": "resume", "step": 2, "time": 99.0, "tokens": 200}, RECORDS[-1] | {"tokens_per_second": 25.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS + again))
    records = read_log(tmp_path)
    at = axis_position(records, "time", {}, "r")
    assert [at(step) for step in range(4)] == [0, 15, 20, 24]


def test_values_that_are_not_numbers_are_left_out() -> None:
    records = [{"event": "train", "step": 1, "loss": None}, {"event": "train", "step": 2, "loss": 1.5}]
    assert series(records, "train", "loss") == ([2], [1.5])


@pytest.mark.parametrize(("longest", "unit"), [(90, (1, "seconds")), (120, (60, "minutes")), (7200, (3600, "hours"))])
def test_units_of_time(longest: float, unit: tuple[float, str]) -> None:
    assert time_unit(longest) == unit
