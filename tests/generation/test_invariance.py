"""The text and log-probabilities of a request are the same, bit for bit, whatever else the engine does."""

import random
from collections import defaultdict

import pytest
from generation.models import random_model

from gpt2.generation.engine import Engine
from gpt2.generation.native import compiled
from gpt2.generation.request import Request, Token
from gpt2.generation.sampling import Sampling
from gpt2.generation.weights import for_decoding
from gpt2.model import GPT

CHUNK = 16
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(),
    Sampling(0.8, top_k=20),
    Sampling(top_p=0.8, repetition_penalty=1.3),
    Sampling(min_p=0.02, presence_penalty=0.5, frequency_penalty=0.2),
    Sampling(1.5, logit_bias=((3, 2.0),)),
]
pytestmark = pytest.mark.skipif(compiled("float32") is None, reason="there is no C compiler with OpenMP")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", CHUNK)


def requests_of_all_kinds(count: int, rng: random.Random) -> list[Request]:
    """Prompts of 1 to 110 tokens in a context of 96, of which many begin in the same way and some are the same."""
    stems = [[rng.randrange(257) for _ in range(length)] for length in (16, 33, 64, 80)]
    requests: list[Request] = []
    for seed in range(count):
        kind = rng.randrange(10)
        prompt = [rng.randrange(257) for _ in range(rng.choice([1, 2, 5, 15, 16, 17, 31, 32, 48]))]
        if kind < 5:
            prompt = rng.choice(stems)[: rng.randrange(10, 80)] + prompt[: rng.randrange(16)]
        elif kind < 7 and requests:
            prompt = list(rng.choice(requests).prompt)
        elif kind == 7:
            prompt = [*stems[3], *prompt][: rng.randrange(90, 111)]
        requests.append(
            Request(
                prompt,
                rng.choice([1, 2, 5, 12, 20]),
                rng.choice(SAMPLINGS),
                seed,
                ends=frozenset({rng.randrange(257)}),
                n_logprobs=rng.choice([0, 3]),
                echo=rng.random() < 0.2,
                reanchor=rng.random() < 0.5,
            )
        )
    return requests


def alone(model: GPT, request: Request) -> list[Token]:
    engine = Engine(model, slots=1, guess=False)
    engine.submit(request)
    return list(engine.run())


def add_continued(requests: list[Request], results: dict[Request, list[Token]], rng: random.Random) -> None:
    """Insert prompts that contain an earlier prompt and its text, as in a conversation, some while it is decoded."""
    for request in rng.sample(requests, len(requests) // 3):
        ids = [token.id for token in results[request]]
        place = requests.index(request) + rng.randrange(1, 40)
        requests.insert(place, Request([*request.prompt, *ids, 7], 3, seed=place, n_logprobs=3))


def under_load(engine: Engine, requests: list[Request], rng: random.Random) -> dict[Request, list[Token]]:
    """Requests join in waves, and some are cancelled on the way."""
    found: dict[Request, list[Token]] = defaultdict(list)
    waiting = requests[::-1]
    running: list[Request] = []
    while waiting or not engine.is_idle:
        for _ in range(min(len(waiting), rng.choice([0, 0, 1, 2, 12]))):
            running.append(waiting.pop())
            engine.submit(running[-1])
        if running and rng.random() < 0.05:
            engine.cancel(rng.choice(running))
        for token in engine.step():
            found[token.request].append(token)
    return found


@pytest.mark.parametrize(
    ("dtype", "quantize", "count"), [("float32", "none", 200), ("float32", "int8", 50), ("bfloat16", "none", 50)]
)
def test_results_under_load_are_those_of_the_request_alone(dtype: str, quantize, count: int) -> None:
    model = for_decoding(random_model(block_size=96), dtype, quantize)
    rng = random.Random(1)
    requests = requests_of_all_kinds(count, rng)
    expected = {request: alone(model, request) for request in requests}
    add_continued(requests, expected, rng)
    expected |= {request: alone(model, request) for request in requests if request not in expected}
    for slots, prefill_tokens, prefix_bytes in [(13, CHUNK, 10**5), (40, 512, 10**7)]:
        engine = Engine(model, slots=slots, prefill_tokens=prefill_tokens, prefix_bytes=prefix_bytes)
        for order in (requests, requests[::-1]):
            found = under_load(engine, order, rng)
            n_complete = 0
            for request in requests:
                assert found[request] == expected[request][: len(found[request])]
                n_complete += len(found[request]) == len(expected[request])
            assert n_complete > 0.8 * count
        assert 0 < engine.prefixes.n_bytes <= prefix_bytes
    texts = {tuple(token.id for token in tokens) for tokens in expected.values()}
    assert len(texts) > 0.9 * count, "they differ, so that a mix-up would be seen"
