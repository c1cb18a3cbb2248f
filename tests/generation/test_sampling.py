"""The next token is drawn from the likeliest tokens with the right probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.generation.sampling import Sampling, biased, candidates, choose, keep_top_p, log_probs, penalized, uniform

PROBABILITIES = torch.tensor([[0.1, 0.5, 0.25, 0.15]])
LOGITS = torch.log(PROBABILITIES)


def kept(**settings) -> list[int]:
    probabilities, ids = candidates(LOGITS, Sampling(**settings))
    ids = torch.arange(4)[None] if ids is None else ids
    assert ids[0].tolist() == sorted(ids[0].tolist())
    return ids[probabilities > 0].tolist()


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3]), (0, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_likeliest(k: int, expected: list[int]) -> None:
    assert kept(top_k=k) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0.01, [1]), (0.49, [1]), (0.51, [1, 2]), (0.76, [1, 2, 3]), (0.95, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, expected: list[int]) -> None:
    assert kept(top_p=p) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.15, [0, 1, 2, 3]), (0.25, [1, 2, 3]), (0.4, [1, 2]), (1.0, [1])])
def test_min_p_keeps_what_is_likely_compared_with_the_likeliest(p: float, expected: list[int]) -> None:
    assert kept(min_p=p) == expected


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=20), st.floats(0.01, 1))
def test_top_p_by_its_definition(values: list[float], p: float) -> None:
    ordered = torch.tensor([values], dtype=torch.float64).softmax(-1).sort(descending=True).values
    chosen = keep_top_p(ordered, p)[0]
    mass = chosen.sum().item()
    assert mass >= p - 1e-9
    assert mass - chosen[chosen > 0].min().item() < p + 1e-9  # without the least likely one, p is not reached


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(LOGITS, Sampling(temperature=0), [0.5]).tolist() == [1]


def draws(count: int, **settings) -> torch.Tensor:
    noise = [uniform(7, i) for i in range(count)]
    return choose(LOGITS.expand(count, -1), Sampling(**settings), noise)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [0.1, 0.5, 0.25, 0.15]),
        ({"temperature": 0.5}, [0.01, 0.25, 0.0625, 0.0225]),
        ({"top_k": 3}, [0, 0.5, 0.25, 0.15]),
        ({"top_k": 3, "top_p": 0.7}, [0, 0.5, 0.25, 0]),  # top_k renormalises three tokens, of which two reach 0.7
        ({"min_p": 0.25}, [0, 0.5, 0.25, 0.15]),
        ({"top_p": 1e-45}, [0, 1, 0, 0]),
    ],
)
def test_frequencies_follow_the_probabilities(settings: dict, weights: list[float]) -> None:
    n = 20_000
    counts = np.bincount(draws(n, **settings), minlength=4)
    expected = np.array(weights) / sum(weights) * n
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    chi_square = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert chi_square < 16.3  # 0.1 % of samples exceed it at 3 degrees of freedom


def test_the_noise_is_even_and_a_function_of_seed_and_index() -> None:
    noise = np.array([[uniform(seed, index) for index in range(50)] for seed in range(40)])
    assert uniform(3, 4) == noise[3, 4]
    assert len(np.unique(noise)) == noise.size
    assert np.abs(np.histogram(noise, 10, (0, 1))[0] - 200).max() < 60
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("index", [0, 1, 63, 64, 65, 1000, 2**40])
@pytest.mark.parametrize("seed", [0, 1337, 2**63 - 1])
def test_the_noise_is_the_output_of_philox_for_the_seed_and_the_index(seed: int, index: int) -> None:
    assert uniform(seed, index) == float(np.random.Philox(key=seed, counter=index).random_raw() >> 11) * 2.0**-53


def test_bias_bans_and_allows() -> None:
    banned = biased(LOGITS, Sampling(logit_bias=((1, float("-inf")), (3, 2.0))))
    assert torch.equal(banned, LOGITS + torch.tensor([0, float("-inf"), 0, 2.0]))
    assert biased(LOGITS, Sampling(allowed=(0, 2))).softmax(-1).tolist()[0] == pytest.approx([2 / 7, 0, 5 / 7, 0])


def test_penalties() -> None:
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0, 0.0])
    seen, counts = torch.tensor([True, True, False, False, True]), torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0])
    sampling = Sampling(repetition_penalty=1.25, presence_penalty=0.5, frequency_penalty=0.25)
    expected = [2 / 1.25 - 0.5 - 0.5, -2 * 1.25 - 0.25 - 0.5, 2.0, -2.0, 0.0]
    assert penalized(logits, sampling, seen, counts).tolist() == pytest.approx(expected)


def test_limits_are_those_of_transformers() -> None:
    processors = pytest.importorskip("transformers.generation.logits_process", reason="transformers is not installed")
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.randint(300, (6, 20), generator=torch.Generator().manual_seed(1))
    expected = processors.RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits)
    for step in (
        processors.TemperatureLogitsWarper(0.7), processors.TopKLogitsWarper(40), processors.TopPLogitsWarper(0.8),
        processors.MinPLogitsWarper(0.1),
    ):  # fmt: skip
        expected = step(tokens, expected)
    sampling = Sampling(0.7, 40, 0.8, 0.1, 1.3)
    for row, ids, target in zip(logits, tokens, expected.softmax(-1), strict=True):
        seen = torch.zeros(300, dtype=torch.bool).index_fill_(0, ids, True)
        probabilities, kept_ids = candidates(penalized(row, sampling, seen, torch.zeros(300))[None], sampling)
        full = torch.zeros(1, 300).scatter(1, kept_ids, probabilities / probabilities.sum())
        assert torch.allclose(full[0], target, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": 1e-45}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.5}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"presence_penalty": 1e9},
        {"frequency_penalty": float("nan")}, {"logit_bias": ((1, float("inf")),)}, {"allowed": ()},
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0}, {"temperature": 0.7}, {"top_k": 40}, {"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.05},
    {"temperature": 1.3, "top_k": 700, "top_p": 0.95, "min_p": 0.01},
])  # fmt: skip
@pytest.mark.parametrize("has_ties", [False, True])
def test_a_row_does_not_depend_on_the_other_rows(settings: dict, has_ties: bool) -> None:
    """The same bits for any number of rows, from a slice as the engine has it, and where many logits are the same."""
    sampling, generator = Sampling(**settings), torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(37, 1201, generator=generator)
    logits = (logits.bfloat16().float() if has_ties else logits)[:, :1183]
    noise = torch.rand(37, dtype=torch.float64, generator=generator).tolist()
    ids = torch.arange(37)
    alone = [logits[i : i + 1].clone() for i in range(37)]
    for rows in ([0], [0, 1], [5, 0, 36], list(range(7)), list(range(37))):
        for some in (slice(min(rows), max(rows) + 1), rows):
            numbers = list(range(37))[some] if isinstance(some, slice) else rows
            chosen = choose(logits[some], sampling, [noise[row] for row in numbers])
            shares, _ = candidates(logits[some], Sampling() if settings.get("temperature") == 0 else sampling)
            found = log_probs(logits[some], ids[some], 5)
            for row, i in enumerate(numbers):
                assert chosen[row] == choose(alone[i], sampling, noise[i : i + 1])[0]
                expected, _ = candidates(alone[i], Sampling() if settings.get("temperature") == 0 else sampling)
                assert torch.equal(shares[row], expected[0])
                one = log_probs(alone[i], ids[i : i + 1], 5)
                assert all(torch.equal(a[row], b[0]) for a, b in zip(found, one, strict=True))
