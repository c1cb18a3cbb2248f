"""Guesses save steps and change nothing else."""

import random
from collections.abc import Sequence

import pytest
from generation.models import random_model

from gpt2.generation.engine import Engine
from gpt2.generation.guesses import Guesses
from gpt2.generation.native import compiled
from gpt2.generation.request import Request, Token
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT

needs_compiler = pytest.mark.skipif(compiled("float32") is None, reason="there is no C compiler with OpenMP")


def test_what_followed_last_time_is_guessed() -> None:
    tokens = [1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2, 3]
    guesses = Guesses()
    assert guesses.guess(tokens[:2], 9) == []
    assert guesses.guess(tokens[:7], 9) == [4], "one token is guessed at first"
    guesses.learn(1, 1)
    assert guesses.guess(tokens, 9) == [5, 6], "the last occurrence counts, and one more token"
    assert guesses.guess(tokens, 1) == [5]
    assert guesses.guess(tokens, 0) == []
    assert guesses.guess([*tokens, 9], 9) == []


def test_more_is_guessed_while_it_is_right() -> None:
    guesses, loop = Guesses(), [7, 8, 7, 8, 7]
    sizes = []
    for _ in range(4):
        guess = guesses.guess(loop, 8)
        assert guess == [8, 7, 8, 7, 8, 7, 8, 7][: len(guess)], "it goes on past the end of the text"
        guesses.learn(len(guess), len(guess))
        sizes.append(len(guess))
    assert sizes == [1, 2, 4, 8]
    guesses.learn(3, 8)
    assert guesses.guess(loop, 8) == [8, 7, 8, 7], "as many as were right, and one"


def test_wrong_guesses_become_rare() -> None:
    guesses, tokens = Guesses(), [1] * 4
    steps = []
    for step in range(200):
        if guess := guesses.guess(tokens, 1):
            steps.append(step)
            guesses.learn(0, len(guess))
    assert steps == [0, 2, 6, 14, 30, 62, 126, 190]


def decoded(model: GPT, requests: Sequence[Request], guess: bool, slots: int) -> tuple[dict[int, list[Token]], int]:
    """The tokens of each request, and the number of steps."""
    engine = Engine(model, slots=slots, guess=guess)
    for request in requests:
        engine.submit(request)
    found: dict[int, list[Token]] = {id(request): [] for request in requests}
    n_steps = 0
    while not engine.is_idle:
        for token in engine.step():
            found[id(token.request)].append(token)
        n_steps += 1
    return found, n_steps


@needs_compiler
def test_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    model = random_model(block_size=96)
    loop = Request([5, 6, 7, 5, 6, 7], 80, Sampling(temperature=0, allowed=(9,)), n_logprobs=2)
    expected, n_steps = decoded(model, [loop], guess=False, slots=1)
    found, n_fewer = decoded(model, [loop], guess=True, slots=1)
    assert found == expected
    assert (n_steps, n_fewer) == (80, 16), "one token in 4 steps, then 2, 3, 5, eight times 8, and the last 2"


@needs_compiler
@pytest.mark.parametrize("share", [0.0, 0.6, 0.9, 1.0])
def test_right_and_wrong_guesses_give_the_same_tokens(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some guesses are taken from the text as it will be, and some tokens of them are wrong."""
    model, rng = random_model(block_size=48), random.Random(int(10 * share))
    samplings = [
        Sampling(temperature=0),
        Sampling(),
        Sampling(top_k=9, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
    ]
    requests = [
        Request(
            [rng.randrange(257) for _ in range(rng.randrange(1, 60))],
            rng.randrange(1, 50),
            samplings[seed % 3],
            seed,
            ends=frozenset(rng.sample(range(257), 6)),
            n_logprobs=rng.choice([None, 0, 3]),
            echo=seed % 7 == 0,
            reanchor=True,
        )
        for seed in range(60)
    ]
    expected, n_steps = decoded(model, requests, guess=False, slots=3)
    texts = [[*request.prompt, *(token.id for token in expected[id(request)])] for request in requests]

    def guess(_: Guesses, tokens: Sequence[int], most: int) -> list[int]:
        text = next(text for text in texts if text[: len(tokens)] == tokens)
        future = text[len(tokens) :][: max(0, min(most, rng.randrange(6)))]
        return [token if rng.random() < share else (token + 1) % 257 for token in future]

    monkeypatch.setattr(Guesses, "guess", guess)
    found, n_fewer = decoded(model, requests, guess=True, slots=3)
    assert found == expected
    assert n_fewer < n_steps or share < 0.6
