"""Texts are decoded together, and each gets the tokens that it gets alone and without a cache."""

import random
from collections import defaultdict

import pytest
import torch
from generation.models import greedy, random_model

from gpt2.errors import UserError
from gpt2.generation.complete import complete
from gpt2.generation.engine import Engine
from gpt2.generation.request import LogProbs, Request, Token
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT

GREEDY = Sampling(temperature=0)


def decoded(engine: Engine, requests: list[Request]) -> list[list[int]]:
    for request in requests:
        engine.submit(request)
    new: dict[int, list[int]] = defaultdict(list)
    for token in engine.run():
        new[id(token.request)].append(token.id)
    return [new[id(request)] for request in requests]


def mixed_requests(reanchor: bool) -> list[Request]:
    """Prompts of many lengths, some longer than the context of 16, and some that begin in the same way."""
    rng = random.Random(0)
    lengths = [1, 2, 5, 9, 15, 16, 17, 40, 1, 3]
    prompts = [[rng.randrange(257) for _ in range(length)] for length in lengths]
    common = [rng.randrange(257) for _ in range(10)]
    prompts += [common + [rng.randrange(257) for _ in range(n)] for n in (1, 1, 3, 4)]
    return [Request(prompt, rng.choice([1, 4, 20]), GREEDY, reanchor=reanchor) for prompt in prompts]


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("reanchor", [False, True])
def test_every_text_is_the_same_as_alone_without_a_cache(reanchor: bool, flash: bool, monkeypatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 4)
    model = random_model(flash=flash)
    requests = mixed_requests(reanchor)
    expected = [greedy(model, request.prompt, request.max_new_tokens, reanchor) for request in requests]
    assert len(set(map(tuple, expected))) > 10, "they differ, so that a mix-up would be seen"
    for slots, prefill_tokens, prefix_bytes, n_behind in [
        (1, 512, 0, 0),
        (3, 5, 10**6, 0),
        (5, 24, 10**5, 1),
        (20, 512, 0, 1),
    ]:
        engine = Engine(model, slots=slots, prefill_tokens=prefill_tokens, prefix_bytes=prefix_bytes)
        engine.n_behind = n_behind  # 1 as on a GPU, where a step is read after the next one was launched
        assert decoded(engine, requests) == expected, (slots, prefill_tokens)
        assert decoded(engine, requests[::-1]) == expected[::-1], "again, with what is kept of the first time"


def test_sampled_texts_do_not_depend_on_the_others() -> None:
    model = random_model()
    rng = random.Random(1)
    kinds = [Sampling(), Sampling(0.5, top_k=20), Sampling(top_p=0.8, repetition_penalty=1.3), Sampling(min_p=0.02)]
    requests = [
        Request(
            [rng.randrange(257) for _ in range(rng.randrange(1, 9))], rng.randrange(1, 12), rng.choice(kinds), seed
        )
        for seed in range(60)
    ]
    alone = [decoded(Engine(model, slots=1), [request])[0] for request in requests]
    assert decoded(Engine(model, slots=7, prefill_tokens=20), requests) == alone
    assert decoded(Engine(model, slots=32), requests) == alone
    assert len(set(map(tuple, alone))) > 50


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of all ids for which PyTorch computes hidden states, which it does for every step here."""
    monkeypatch.setattr("gpt2.generation.engine.native_step", lambda *_: None)
    shapes: list[tuple[int, ...]] = []
    hidden = GPT.hidden
    monkeypatch.setattr(
        GPT,
        "hidden",
        lambda self, idx, *rest, **named: shapes.append(tuple(idx.shape)) or hidden(self, idx, *rest, **named),
    )
    return shapes


def test_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = count_computed(monkeypatch)
    complete(random_model(), [[0] * 4], 14, GREEDY)
    assert shapes == [(1, 4)] + [(1, 1)] * 12 + [(1, 16)]


def test_long_prompts_do_not_hold_up_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 10)
    shapes = count_computed(monkeypatch)
    engine = Engine(random_model(block_size=64), slots=3, prefill_tokens=29)
    engine.submit(Request([1], 20, GREEDY))
    engine.step()
    assert shapes == [(1, 1)]
    engine.submit(Request([2] * 35, 2, GREEDY))
    engine.submit(Request([3] * 2, 2, GREEDY))
    assert [len(engine.step()) for _ in range(4)] == [1, 3, 3, 1], "the second step completes both prompts"
    assert shapes[1:] == [(1, 1), (1, 10), (1, 10), (1, 1), (1, 10), (1, 5), (1, 2), (3, 1), (1, 1)]


def test_a_step_computes_one_chunk_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 10)
    shapes = count_computed(monkeypatch)
    engine = Engine(random_model(block_size=64), slots=8, prefill_tokens=1)
    for i in range(5):
        engine.submit(Request([i] * 9, 9, GREEDY))
    for _ in range(5):
        engine.step()
    assert [shape for shape in shapes if shape[1] > 1] == [(1, 9)] * 5
    assert [shape for shape in shapes if shape[1] == 1] == [(n, 1) for n in range(1, 5)]


def test_prompts_get_the_time_that_a_step_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock says that a token takes 1 ms, and later 2 ms."""
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 10)
    shapes = count_computed(monkeypatch)
    clock, token_seconds = [0.0], [0.001]
    monkeypatch.setattr("gpt2.generation.engine.time.perf_counter", lambda: clock[0])
    engine = Engine(random_model(block_size=512), slots=2, prefill_tokens=100, step_seconds=0.045)
    logits = engine.compute.logits

    def slow_logits(last, starts, chunks):
        clock[0] += token_seconds[0] * (len(starts) + sum(len(chunk.tokens) for chunk in chunks))
        return logits(last, starts, chunks)

    engine.compute.logits = slow_logits
    engine.submit(Request([0], 200, GREEDY))
    engine.submit(Request([*range(256), *range(200)], 1, GREEDY))
    computed = []
    for step in range(9):
        before = len(shapes)
        token_seconds[0] = 0.001 if step < 4 else 0.0001 if step == 7 else 0.002
        engine.step()
        computed.append(sum(shape[1] for shape in shapes[before:] if shape[1] > 1))
    # one chunk until a step was measured, then 45 ms less the text that is decoded; at most prefill_tokens
    assert computed == [0, 10, 40, 40, 40, 20, 20, 20, 100]


def test_beginnings_that_are_computed_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 10)
    model = random_model(block_size=64)
    requests = [Request([*range(25), *([i] * i)], 2, GREEDY) for i in range(4)]
    expected = [greedy(model, request.prompt, 2) for request in requests]
    shapes = count_computed(monkeypatch)
    assert decoded(Engine(model, slots=5), requests) == expected
    computed = [shape[1] for shape in shapes if shape[1] > 1]
    assert computed == [10, 10, 5, *(5 + i for i in range(1, 4))], "the first twenty positions once"


def test_prompts_take_turns_in_the_order_in_which_they_came() -> None:
    """A long prompt is not held up by short ones that keep coming, and whose slots are free again at once."""
    engine = Engine(random_model(block_size=128), slots=3, prefill_tokens=64)
    long = Request([1] * 128, 1, GREEDY)
    for request in (Request([2], 1, GREEDY), long):
        engine.submit(request)
    ended: list[Request] = []
    for i in range(4):
        engine.submit(Request([3, i], 1, GREEDY))
        ended += [token.request for token in engine.step()]
    assert ended.index(long) == 1


def test_the_load_of_an_engine() -> None:
    engine = Engine(random_model(), slots=2)
    for seed in range(5):
        engine.submit(Request([seed], 3, GREEDY))
    assert (engine.n_active, engine.n_waiting) == (0, 5)
    engine.step()
    assert (engine.n_active, engine.n_waiting) == (2, 3)
    list(engine.run())
    assert (engine.n_active, engine.n_waiting) == (0, 0)


def test_samples_of_one_prompt_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = count_computed(monkeypatch)
    requests = [Request(list(range(30)), 3, Sampling(), seed) for seed in range(5)]
    texts = decoded(Engine(random_model(block_size=64), slots=5), requests)
    assert shapes == [(1, 30), (5, 1), (5, 1)], "the prompt once for all"
    assert len(set(map(tuple, texts))) == 5


def test_a_prompt_is_computed_again_for_its_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = count_computed(monkeypatch)
    kinds = [(None, False), (2, True), (2, True), (None, True), (3, False)]
    requests = [Request([5, 6, 7, 8], 2, GREEDY, n_logprobs=n, echo=echo) for n, echo in kinds]
    engine = Engine(random_model(), slots=6)
    engine.submit(Request([5, 6, 7, 8], 9, GREEDY))
    for request in requests:
        engine.submit(request)
    tokens = {token.request: token for token in engine.step() if token.index == 0}
    assert shapes.count((1, 4)) == 3, "without an echo, with that of two log-probabilities, and with that of none"
    echoed = [tokens[request].prompt_logprobs for request in requests]
    assert echoed[0] is None and echoed[4] is None
    assert echoed[1] is not None and len(echoed[1]) == 4
    assert echoed[1] == echoed[2]


def test_a_later_prompt_reuses_an_earlier_text_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 8)
    model = random_model(block_size=64)
    of_chunk = 2 * 2 * 32 * 4 * 8  # keys and values of 2 layers, 32 channels in float32, 8 positions
    first, second = ([start] * 30 for start in (1, 2))
    for memory, computed in ((6 * of_chunk, [8]), (4 * of_chunk, [8, 8, 8]), (3 * of_chunk, [8] * 4), (0, [8] * 4)):
        engine = Engine(model, slots=1, prefix_bytes=memory, native=False)
        decoded(engine, [Request(first, 2, GREEDY), Request(second, 2, GREEDY)])
        assert engine.prefixes.n_bytes <= memory
        with monkeypatch.context() as patch:
            shapes = count_computed(patch)
            again = decoded(engine, [Request([*first, 7, 8], 5, GREEDY)])
        assert shapes[: len(computed) + 1] == [(1, size) for size in (*computed, 1)], memory
        assert again == [greedy(model, [*first, 7, 8], 5)]


def test_cancelling_frees_the_slot_at_once() -> None:
    engine = Engine(random_model(), slots=1)
    first, second = Request([1], 10, GREEDY), Request([2], 2, GREEDY)
    engine.submit(first)
    engine.submit(second)
    engine.step()
    engine.cancel(first)
    engine.cancel(first)
    assert [token.request for token in (*engine.step(), *engine.step())] == [second, second]
    assert engine.is_idle


def test_a_text_ends_with_an_end_token() -> None:
    model = random_model()
    expected = greedy(model, [3], 12)
    end = expected[4]
    length = expected.index(end) + 1
    for n_behind in (0, 1):
        engine = Engine(model, slots=2)
        engine.n_behind = n_behind
        requests = [Request([3], 12, GREEDY, ends=frozenset({end})), Request([3], 12, GREEDY)]
        for request in requests:
            engine.submit(request)
        tokens = [token for token in engine.run() if token.request is requests[0]]
        assert [token.id for token in tokens] == expected[:length]
        assert [token.ending for token in tokens] == [None] * (length - 1) + ["stop"]


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    model = random_model(vocab_size=300)
    requests = [Request([0], 20, Sampling(temperature=5.0), seed) for seed in range(20)]
    assert max(map(max, decoded(Engine(model, vocab_size=257), requests))) < 257
    assert max(map(max, decoded(Engine(model), requests))) >= 257


def reference_logprobs(model: GPT, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model.hidden(torch.tensor([tokens])))[0].double().log_softmax(-1)


@pytest.mark.parametrize("prefill_tokens", [3, 512])
def test_log_probabilities_of_text_and_prompt(prefill_tokens: int) -> None:
    model = random_model()
    request = Request([5, 6, 7, 8, 9], 6, Sampling(0.7), 3, n_logprobs=2, echo=True)
    engine = Engine(model, prefill_tokens=prefill_tokens)
    engine.submit(request)
    tokens: list[Token] = list(engine.run())
    ids = [*request.prompt, *(token.id for token in tokens)]
    expected = reference_logprobs(model, ids)
    echoed = tokens[0].prompt_logprobs
    assert echoed is not None
    assert echoed[0] is None
    assert tokens[1].prompt_logprobs is None
    found = [*echoed[1:], *(token.logprobs for token in tokens)]
    assert len(found) == len(ids) - 1
    for position, one in enumerate(found):
        assert isinstance(one, LogProbs)
        assert one.chosen == pytest.approx(expected[position, ids[position + 1]].item(), abs=1e-4)
        top = expected[position].topk(2)
        assert [i for i, _ in one.top] == top.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_model_without_finite_numbers_is_reported() -> None:
    model = random_model()
    model.transformer.ln_f.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="are not finite"):
        complete(model, [[1]], 2, GREEDY)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("n_behind", [0, 1])
def test_an_engine_can_be_used_after_an_error(n_behind: int, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text reaches a position whose embedding is not finite when others are half done, one is over, one waits."""
    monkeypatch.setattr("gpt2.generation.engine.CHUNK", 4)
    model = random_model()
    prompts = [[1, 2, 3], [2, 2, 3], [3, 2, 3], [4] * 14, [5, 2, 3]]
    expected = [greedy(model, prompt, 2) for prompt in prompts]
    engine = Engine(model, slots=3, prefix_bytes=10**6, native=native)
    engine.n_behind = n_behind
    good = model.transformer.wpe.weight[10].clone()
    model.transformer.wpe.weight.data[10] = float("nan")
    for prompt, n in zip(prompts, (2, 7, 7, 1, 2), strict=True):
        engine.submit(Request(prompt, n, GREEDY))
    engine.step()
    with pytest.raises(UserError, match="are not finite"):
        list(engine.run())
    assert engine.is_idle
    assert (engine.n_active, engine.n_waiting, engine.step()) == (0, 0, [])
    assert engine.cache.k.isfinite().all()
    assert engine.cache.v.isfinite().all()
    model.transformer.wpe.weight.data[10] = good
    assert decoded(engine, [Request(prompt, 2, GREEDY) for prompt in prompts]) == expected


def test_a_model_in_bfloat16_decodes_too() -> None:
    assert len(complete(random_model().to(torch.bfloat16), [[0, 0, 0]], 20, GREEDY)[0]) == 20


def test_no_new_tokens_are_no_error() -> None:
    idx = torch.tensor([[1, 2], [3, 4]])
    assert torch.equal(random_model().generate(idx, 0), idx)
    assert random_model().generate(idx, 3).shape == (2, 5)
