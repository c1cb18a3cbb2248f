from typing import Any

import pytest

from gpt2.reporting.verdict import Band, Level, Reference, judge, parse, references

BAND = Reference(
    "a known run",
    "measured by hand",
    match={"n_layer": 4, "val_data": ["abc", "9 tokens"], "tokens_per_step": 768, "evaluated_rows": 30},
    recipe={"learning_rate": 1e-3},
    band=Band(steps=[0, 10, 20, 30], low=[4.0, 3.0, 2.0, 1.0], high=[4.2, 3.2, 2.2, 1.2], margin=0.1),
)
SETTINGS = {
    "n_layer": 4, "batch_size": 6, "block_size": 64, "gradient_accumulation_steps": 2, "eval_iters": 5,
    "learning_rate": 1e-3,
}  # fmt: skip


def records(losses: dict[int, float], data: str = "abc") -> list[dict[str, Any]]:
    start = {"event": "start", "step": 0, "data": {"train": "x", "val": data}}
    return [start, *({"event": "eval", "step": step, "val_loss": loss} for step, loss in losses.items())]


@pytest.mark.parametrize(
    ("losses", "state", "sentence"),
    [
        ({}, "early", "No evaluation yet at a step of a known run."),
        ({5: 9.0}, "early", "No evaluation yet at a step of a known run."),
        (
            {0: 4.1, 5: 9.0, 10: 3.3, 20: 1.9},
            "within",
            "Within the band of a known run at all 3 evaluations they share.",
        ),
        (
            {0: 4.1, 10: 3.5, 20: 2.0},
            "within",
            "Within the band of a known run at step 20, outside at 1 of 3 evaluations: most at step 10, by 0.200.",
        ),
        (
            {0: 4.1, 10: 3.4, 20: 2.0, 30: 1.8},
            "above",
            "Above the band of a known run since step 30: by 0.500 at step 30.",
        ),
        ({0: 4.1, 10: 3.4, 20: 2.4}, "above", "Above the band of a known run since step 10: by 0.100 at step 20."),
        ({0: 4.5, 10: 3.4}, "above", "Above the band of a known run since step 0: by 0.100 at step 10."),
        ({0: 4.5, 10: 2.5}, "below", "Below the band of a known run since step 10: by 0.400 at step 10."),
    ],
)
def test_a_run_beside_a_band(losses: dict[int, float], state: str, sentence: str) -> None:
    verdict = judge(records(losses), SETTINGS, [BAND])
    assert (verdict.state, verdict.sentence) == (state, sentence)


def test_settings_that_may_be_the_reason_are_named() -> None:
    verdict = judge(records({10: 9.0}), SETTINGS | {"learning_rate": 0.5}, [BAND])
    assert verdict.sentence.endswith("Other settings: learning_rate=0.5 (there 0.001).")


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"n_layer": 5}, "abc"),
        ({"gradient_accumulation_steps": 1}, "abc"),
        ({"total_batch_size": 384}, "abc"),
        ({"eval_iters": 6}, "abc"),
        ({}, "z"),
    ],
)
def test_another_model_batch_or_dataset_is_not_compared(changes: dict[str, int], data: str) -> None:
    verdict = judge(records({10: 3.1}, data), SETTINGS | changes, [BAND])
    assert (verdict.state, verdict.reference) == ("unknown", None)
    assert verdict.sentence == "No reference is known for this data and model."


def test_one_batch_in_other_pieces_is_compared() -> None:
    pieces = {"batch_size": 3, "gradient_accumulation_steps": 4, "eval_iters": 10}
    assert judge(records({10: 3.1}), SETTINGS | pieces, [BAND]).state == "within"


def test_any_of_several_fingerprints_will_do() -> None:
    assert judge(records({10: 3.1}, "9 tokens"), SETTINGS, [BAND]).state == "within"


def test_a_run_beside_published_losses() -> None:
    published = Reference(
        "n", "s", match={}, dataset_like="fineweb", levels=(Level("old", 3.4250), Level("new", 3.2847))
    )
    settings = {"dataset": "data/fineweb10B/*.bin"}
    verdict = judge(records({0: 11.0, 500: 3.30}), settings, [published])
    assert verdict.sentence == "Validation loss 3.3000: 0.0153 above new (3.2847)."
    assert judge(records({0: 11.0}), settings, [published]).state == "early"
    assert judge(records({}), {"dataset": "openwebtext"}, [published]).state == "unknown"


def test_the_references_of_the_package_are_whole() -> None:
    names = {reference.name for reference in references()}
    assert len(names) == 3
    for reference in references():
        assert reference.source
        assert (reference.band is None) != (not reference.levels)
        if band := reference.band:
            assert len(band.steps) == len(band.low) == len(band.high)
            assert all(low <= high for low, high in zip(band.low, band.high, strict=True))


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("fineweb-edu", "GPT-2 124M on FineWeb-Edu"),
        ("edu_fineweb10B/*.bin", "GPT-2 124M on FineWeb-Edu"),
        ("edu_fineweb10B/edufineweb_*.npy", "GPT-2 124M on FineWeb-Edu"),
        ("data/fineweb10B/fineweb_*.bin", "GPT-2 124M on FineWeb"),
        ("openwebtext", None),
    ],
)
def test_web_corpora_are_told_apart_by_name(dataset: str, name: str | None) -> None:
    found = judge([], {"dataset": dataset, "vocab_size": 50257, "block_size": 1024}).reference
    assert (found.name if found else None) == name


def test_a_reference_file_may_have_nothing_but_levels() -> None:
    text = 'name = "n"\nsource = "s"\n[match]\nblock_size = 8\n[[levels]]\nlabel = "l"\nval_loss = 2.5\n'
    assert parse(text) == Reference("n", "s", {"block_size": 8}, levels=(Level("l", 2.5),))
