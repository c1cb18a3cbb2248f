"""Induction scores and losses against cases that are made by hand."""

from types import SimpleNamespace

import pytest
import torch

from gpt2.errors import UserError
from gpt2.inside import induction as module
from gpt2.inside.induction import induction, induction_scores, previous_scores, repeated_tokens
from gpt2.model import GPT


def test_each_half_has_different_tokens_and_both_are_equal() -> None:
    tokens = repeated_tokens(20, 12, count=5, seed=3)
    assert tokens.shape == (5, 24)
    assert torch.equal(tokens[:, :12], tokens[:, 12:])
    assert all(len(set(row)) == 12 for row in tokens.tolist())
    assert len({tuple(row) for row in tokens.tolist()}) == 5
    assert torch.equal(tokens, repeated_tokens(20, 12, count=5, seed=3))
    assert not torch.equal(tokens, repeated_tokens(20, 12, count=5, seed=4))


@pytest.mark.parametrize("length", [1, 21])
def test_a_half_that_is_too_short_or_has_too_few_tokens_is_refused(length: int) -> None:
    with pytest.raises(UserError, match=f"a half has {length} different tokens"):
        repeated_tokens(20, length)


def test_scores_of_heads_that_are_made_by_hand() -> None:
    """In A B C D A B C D, the second A, B and C (positions 4, 5, 6) should look at B, C and D (1, 2, 3)."""
    weights = torch.zeros(1, 2, 4, 8, 8)
    weights[0, :, 0, [4, 5, 6], [1, 2, 3]] = 1  # an induction head
    weights[0, :, 1, [4, 5, 6, 7], [0, 1, 2, 3]] = 1  # looks at the same token
    weights[0, :, 2, range(1, 8), range(7)] = 1  # looks at the token before
    weights[0, 0, 3, 5, 2] = 0.75  # one position of one sequence
    weights[0, :, :, 3, 0] = 1  # in the first half, and therefore not counted
    weights[0, :, :, 7, 4] = 1  # after the last token, what comes next is unknown
    assert induction_scores(weights)[0].tolist() == pytest.approx([1, 0, 0, 0.75 / 6])
    assert previous_scores(weights)[0].tolist() == pytest.approx([0, 0, 1, 0])


def test_losses_are_those_of_the_two_halves(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens whose loss is their index: 1 … 11 are those of the first half, and 13 … 23 those of the second."""
    monkeypatch.setattr(module, "losses", lambda model, idx: SimpleNamespace(loss=torch.arange(1.0, len(idx))))
    found = induction(model, repeated_tokens(53, 12, count=3))
    assert (found.first_loss, found.second_loss, found.difference) == (6, 18, 12)


def test_a_model_that_has_learned_nothing_does_not_copy(model: GPT) -> None:
    tokens = repeated_tokens(53, 12, count=4)
    found = induction(model.eval(), tokens)
    logits = model(tokens, tokens)[0].detach()
    expected = -logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    assert found.first_loss == pytest.approx(float(expected[:, :11].mean()), abs=1e-4)
    assert found.second_loss == pytest.approx(float(expected[:, 12:].mean()), abs=1e-4)
    assert found.heads.shape == found.previous.shape == (3, 2)
    assert float(found.heads.max()) < 0.5
