import pytest

from gpt2.optim.schedule import learning_rate

NANOGPT = {"schedule": "cosine", "peak": 6e-4, "minimum": 6e-5, "warmup_iters": 2000, "decay_iters": 600_000}
CHAR = {"schedule": "cosine", "peak": 1e-3, "minimum": 1e-4, "warmup_iters": 100, "decay_iters": 5000}
LLMC = {"schedule": "cosine", "peak": 6e-4, "minimum": 0.0, "decay_iters": 18865}
BUILD = {"schedule": "cosine", "peak": 6e-4, "minimum": 6e-5, "decay_iters": 19073}


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        (NANOGPT, 0, 2.998500749625187e-07),
        (NANOGPT, 1, 5.997001499250374e-07),
        (NANOGPT, 999, 2.998500749625187e-04),
        (NANOGPT, 1999, 5.997001499250374e-04),
        (NANOGPT, 2000, 6e-4),
        (NANOGPT, 2001, 5.999999999962741e-04),
        (NANOGPT, 100_000, 5.649999182240157e-04),
        (NANOGPT, 301_000, 3.3e-4),
        (NANOGPT, 600_000, 6e-5),
        (NANOGPT, 600_001, 6e-5),
        (CHAR, 0, 9.900990099009901e-06),
        (CHAR, 99, 9.900990099009901e-04),
        (CHAR, 1000, 9.271396472013282e-04),
        (CHAR, 2550, 5.5e-4),
        (CHAR, 5000, 1e-4),
        # llm.c and build-nanogpt warm up as (it+1)/warmup, which is one iteration less of ours.
        (LLMC | {"warmup_iters": 699}, 0, 8.57142857142857e-07),
        (LLMC | {"warmup_iters": 699}, 349, 3e-4),
        (LLMC | {"warmup_iters": 700}, 700, 6e-4),
        (LLMC | {"warmup_iters": 700}, 9782, 3.000259421358354e-04),
        (LLMC | {"warmup_iters": 700}, 18864, 4.486629e-12),
        (BUILD | {"warmup_iters": 714}, 0, 8.39160839160839e-07),
        (BUILD | {"warmup_iters": 714}, 357, 3.004195804195804e-04),
        (BUILD | {"warmup_iters": 715}, 716, 5.999999960464904e-04),
        (BUILD | {"warmup_iters": 715}, 9894, 3.3e-4),
        (BUILD | {"warmup_iters": 715}, 19072, 6.0000003953509464e-05),
        (BUILD | {"warmup_iters": 715}, 19074, 6e-5),
    ],
)
def test_the_peers_tables(settings: dict, step: int, expected: float) -> None:
    assert learning_rate(step, **settings) == pytest.approx(expected, rel=1e-6 if expected < 1e-10 else 1e-12)


def test_linear_and_wsd_are_llmcs() -> None:
    common = {"peak": 1e-3, "warmup_iters": 100, "decay_iters": 1000}
    assert learning_rate(550, schedule="linear", minimum=1e-4, **common) == pytest.approx(5.5e-4, rel=1e-12)
    wsd = {"schedule": "wsd", "minimum": 0.0, **common}
    assert learning_rate(799, **wsd) == learning_rate(800, **wsd) == 1e-3
    assert learning_rate(900, **wsd) == pytest.approx(2.9289321881345e-04, rel=1e-12)
    assert learning_rate(1000, **wsd) == 0.0


def test_wsd_falls_from_its_peak_though_the_warmup_is_longer_than_the_stable_time() -> None:
    settings = {"schedule": "wsd", "peak": 1.0, "minimum": 0.0, "warmup_iters": 90, "decay_iters": 100}
    assert [learning_rate(i, **settings) for i in (89, 90, 95)] == pytest.approx([90 / 91, 1.0, 1 - 0.5**0.5])


def test_constant_warms_up_and_stays() -> None:
    settings = {"schedule": "constant", "peak": 1.0, "minimum": 0.0, "warmup_iters": 4, "decay_iters": 10}
    assert [learning_rate(i, **settings) for i in (0, 3, 4, 9, 99)] == [0.2, 0.8, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_a_run_that_ends_in_its_warmup_has_no_division_by_zero(schedule: str) -> None:
    settings = {"schedule": schedule, "peak": 1.0, "minimum": 0.1, "warmup_iters": 5, "decay_iters": 5}
    assert [learning_rate(i, **settings) for i in (4, 5, 6)] == pytest.approx([5 / 6, 0.1, 0.1])
