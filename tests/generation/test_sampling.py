"""The next token is drawn from the likeliest tokens with the right probabilities."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.generation.sampling import keep_top_k, keep_top_p, next_token

LOGITS = torch.log(torch.tensor([[0.1, 0.5, 0.25, 0.15]]))


def kept(logits: torch.Tensor) -> list[int]:
    return [i for i, value in enumerate(logits[0].tolist()) if value > -math.inf]


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k_keeps_the_likeliest(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(
    ("p", "expected"), [(0.01, [1]), (0.49, [1]), (0.51, [1, 2]), (0.76, [1, 2, 3]), (0.95, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == expected


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=20), st.floats(0.01, 1))
def test_top_p_by_its_definition(values: list[float], p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    probabilities = logits.softmax(-1)[0]
    chosen = kept(keep_top_p(logits, p))
    mass = probabilities[chosen].sum().item()
    assert mass >= p - 1e-9
    assert mass - probabilities[chosen].min().item() < p + 1e-9  # without the least likely one, p is not reached


def test_temperature_zero_takes_the_likeliest() -> None:
    assert next_token(LOGITS, temperature=0).tolist() == [[1]]


def test_draws_follow_the_tempered_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = next_token(LOGITS.expand(40_000, -1), temperature=0.5, generator=generator)
    weights = torch.tensor([0.1, 0.5, 0.25, 0.15]) ** 2
    expected = weights / weights.sum()
    frequencies = torch.bincount(draws.flatten(), minlength=4) / 40_000
    assert torch.allclose(frequencies, expected, atol=0.01)


def test_limits_hold_for_every_draw() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = next_token(LOGITS.expand(1000, -1), top_k=3, top_p=0.7, generator=generator)
    assert set(draws.flatten().tolist()) == {1, 2}  # after top_k renormalises three tokens, two of them reach 0.7
