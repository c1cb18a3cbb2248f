"""Adjacent requests of EleutherAI's harness with the same context are computed in one sequence."""

import pytest

from gpt2.errors import UserError

pytest.importorskip("lm_eval", reason="needs EleutherAI's harness: pip install lm-eval")

from gpt2.evaluation.harness import questions_of


def test_no_sequence_gets_longer_than_the_context_of_the_model() -> None:
    asked = [(None, [1], [2, 3, 4])] * 5 + [(None, [5], [6])] + [(None, [1], [7])] * 2
    questions = questions_of(asked, block_size=6)
    assert [(q.context, len(q.endings)) for q in questions] == [([1], 2), ([1], 2), ([1], 1), ([5], 1), ([1], 2)]
    with pytest.raises(UserError, match="an ending after 'the cat' has no tokens"):
        questions_of([(("the cat", ""), [1], [])], 6)
