"""OpenAI's client, unmodified, compared with the model's own arithmetic and with `gpt2.generate`."""

import copy
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai
import pytest
import torch
from serve.conftest import TEMPLATE, Running, running

from gpt2.generation.text import generate


@pytest.fixture(scope="module")
def client(tiny: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{tiny.address}/v1", api_key="unused", max_retries=0)


def text_of(one: Running, prompt: str, **settings: Any) -> str:
    """What `gpt2.generate` returns with the API's defaults."""
    return generate(one.network, one.served.tokenizer, prompt, **{"temperature": 1.0, "top_k": 0} | settings)


@torch.no_grad()
def log_probabilities(one: Running, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of what follows each token, in float64."""
    logits = copy.deepcopy(one.network).double()(torch.tensor([ids]), torch.tensor([ids]))[0][0]
    return logits.log_softmax(dim=-1)


def test_a_completion_is_what_generate_returns(tiny: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="the cat", max_tokens=20, seed=7)
    choice = answer.choices[0]
    assert choice.text == text_of(tiny, "the cat", max_new_tokens=20, seed=7)
    assert (choice.finish_reason, choice.logprobs) == ("length", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 20, 27)


def test_without_a_seed_texts_differ(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model="tiny", prompt="a", max_tokens=30).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_a_stream_has_the_same_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the cat", "max_tokens": 30, "n": 3, "seed": 3, "echo": True}
    whole = client.completions.create(**asked)
    texts, reasons = [""] * 3, [None] * 3
    usage = None
    for event in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in event.choices:
            assert reasons[choice.index] is None, "an event after the last one"
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
        usage = event.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == ["length"] * 3
    assert usage == whole.usage


def test_choices_have_consecutive_seeds_and_prompts_the_same_ones(tiny: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["one", "another"], max_tokens=12, n=2, seed=5)
    expected = [
        text_of(tiny, prompt, max_new_tokens=12, seed=seed) for prompt in ("one", "another") for seed in (5, 6)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None and answer.usage.prompt_tokens == 10


def test_token_ids_are_a_prompt(client: openai.OpenAI) -> None:
    ids = list(b"the cat")
    by_text = client.completions.create(model="tiny", prompt="the cat", max_tokens=9, temperature=0)
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=9, temperature=0)
    by_lists = client.completions.create(model="tiny", prompt=[ids, ids[:3]], max_tokens=9, temperature=0)
    assert by_text.choices[0].text == by_ids.choices[0].text == by_lists.choices[0].text


def test_log_probabilities_are_the_models(tiny: Running, client: openai.OpenAI) -> None:
    prompt = "the cat"
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=6, logprobs=3, echo=True, seed=2)
    found = answer.choices[0].logprobs
    assert found is not None and found.token_logprobs is not None and found.top_logprobs is not None
    ids = tiny.post("/tokenize", prompt=prompt).json()["tokens"]
    new = [int(t.removeprefix("bytes:\\x"), 16) if t.startswith("bytes:") else ord(t) for t in found.tokens or []]
    assert new[: len(ids)] == ids and len(new) == len(ids) + 6
    expected = log_probabilities(tiny, new)
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    for position in range(1, len(new)):
        row = expected[position - 1]
        assert found.token_logprobs[position] == pytest.approx(float(row[new[position]]), abs=1e-4)
        best = row.topk(3).values.tolist()
        top = found.top_logprobs[position]
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(best, abs=1e-4)
        assert (found.tokens or [])[position] in top


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_the_ids_of_their_tokens(tiny: Running, stream: bool) -> None:
    fields: dict[str, Any] = {"prompt": "aé", "max_tokens": 20, "logprobs": 3, "seed": 1, "echo": True}
    if stream:
        lines = tiny.post(stream=True, **fields).text.splitlines()
        parts = [json.loads(line[6:])["choices"][0]["logprobs"] for line in lines if line.startswith("data: {")]
    else:
        parts = [tiny.post(**fields).json()["choices"][0]["logprobs"]]
    ids, tokens, tops, top_ids = (
        [value for part in parts for value in part[name]]
        for name in ("token_ids", "tokens", "top_logprobs", "top_token_ids")
    )
    assert len(ids) == 3 + 20 and ids[:3] == list("aé".encode())
    expected = log_probabilities(tiny, ids)
    assert (tops[0], top_ids[0]) == (None, None)
    for position in range(1, len(ids)):
        assert list(tops[position]) == list(top_ids[position])
        assert top_ids[position][tokens[position]] == ids[position]
        for name, i in top_ids[position].items():
            assert tops[position][name] == pytest.approx(float(expected[position - 1, i]), abs=1e-4)


def test_a_prompt_alone_can_be_measured(tiny: Running) -> None:
    """lm-eval asks in this way for the likelihood of a text."""
    answer = tiny.post(prompt="a cat", max_tokens=0, echo=True, logprobs=1).json()
    choice = answer["choices"][0]
    assert choice["text"] == "a cat" and answer["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["tokens"] == list("a cat")
    expected = log_probabilities(tiny, list(b"a cat"))
    total = sum(float(expected[i, b]) for i, b in enumerate(b"a cat"[1:]))
    assert sum(choice["logprobs"]["token_logprobs"][1:]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_count_characters_from_the_beginning_of_the_prompt(tiny: Running, stream: bool) -> None:
    """The random model writes many bytes that are no characters, and each of them becomes one."""
    fields: dict[str, Any] = {"prompt": "aé", "max_tokens": 60, "logprobs": 0, "seed": 1, "echo": True}
    if stream:
        lines = tiny.post(stream=True, **fields).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        parts = [event["choices"][0] for event in events]
    else:
        parts = tiny.post(**fields).json()["choices"]
    text = "".join(part["text"] for part in parts)
    tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
    offsets = [offset for part in parts for offset in part["logprobs"]["text_offset"]]
    assert len(tokens) == len(offsets) == 63
    assert offsets[:4] == [0, 1, 1, 2]  # the second byte of é is inside the second character
    assert offsets == sorted(offsets) and offsets[-1] < len(text)
    for token, offset in zip(tokens, offsets, strict=True):
        if len(token) == 1:  # a byte before it that is no character counts when the next one shows that
            assert text[offset] in (token, "\ufffd")


def test_a_stop_text_ends_a_choice(tiny: Running, client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt="x", max_tokens=40, seed=11).choices[0].text
    stop = whole[8:10]
    end = whole.index(stop)
    for answer in (
        client.completions.create(model="tiny", prompt="x", max_tokens=40, seed=11, stop=stop, logprobs=0),
        client.completions.create(model="tiny", prompt="x", max_tokens=40, seed=11, stop=["☃", stop], logprobs=0),
    ):
        choice = answer.choices[0]
        assert (choice.text, choice.finish_reason) == (whole[:end], "stop")
        assert choice.logprobs is not None and all(offset < 1 + end for offset in choice.logprobs.text_offset or [])
    assert tiny.becomes(lambda: tiny.is_empty)


def test_end_of_text_ends_a_choice_and_is_no_part_of_it(tiny: Running, client: openai.OpenAI) -> None:
    eot = tiny.served.tokenizer.eot
    answer = client.completions.create(model="tiny", prompt="x", max_tokens=5, logit_bias={str(eot): 100})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == 1


def test_a_bias_of_minus_100_bans_a_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=4, logit_bias={str(i): -100 for i in range(257) if i != ord("k")}
    )
    assert answer.choices[0].text == "kkkk"


def test_best_of_returns_the_most_likely_choices(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 10, "seed": 4}
    every = client.completions.create(**asked, n=6, logprobs=0).choices
    means = [math.fsum(choice.logprobs.token_logprobs) / 10 for choice in every]  # type: ignore[union-attr,arg-type]
    order = sorted(range(6), key=lambda i: -means[i])
    best = client.completions.create(**asked, n=2, best_of=6)
    assert [choice.text for choice in best.choices] == [every[i].text for i in order[:2]]
    assert best.choices[0].logprobs is None
    assert best.usage is not None and best.usage.completion_tokens == 60


def test_a_conversation_is_written_by_the_template(tiny: Running, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    prompt = "user: hello\nassistant: "
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=15, seed=9, logprobs=True, top_logprobs=2
    )
    message = answer.choices[0].message
    assert (message.role, message.content) == ("assistant", text_of(tiny, prompt, max_new_tokens=15, seed=9))
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content) == 15 and all(len(token.top_logprobs) == 2 for token in content)
    assert bytes(b for token in content for b in token.bytes or []).decode(errors="replace") == message.content
    streamed = client.chat.completions.create(model="tiny", messages=messages, max_tokens=15, seed=9, stream=True)
    deltas = [event.choices[0].delta for event in streamed]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    again = client.chat.completions.create(model="tiny", messages=parts, max_tokens=15, seed=9)  # type: ignore[arg-type]
    assert again.choices[0].message.content == message.content


def test_the_template_is_rendered_as_transformers_does(tiny: Running) -> None:
    transformers = pytest.importorskip("transformers")
    from gpt2.serve.chat import rendered
    from gpt2.serve.schema import Message

    said = [{"role": "user", "content": " <b>\n"}, {"role": "assistant", "content": "x"}]
    template = "  {%- for m in messages %}\n {{ m['content'] | trim }}\n {% endfor %}" + TEMPLATE
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pytest.importorskip("tokenizers").Tokenizer.from_str(
            '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}'
        )
    )
    expected = reference.apply_chat_template(said, chat_template=template, add_generation_prompt=True, tokenize=False)
    tokenizer = tiny.served.tokenizer

    class Other:
        special = replace(tokenizer.special, chat_template=template)

    assert rendered(Other(), [Message(**one) for one in said]) == expected  # type: ignore[arg-type]


def test_the_answers_do_not_depend_on_the_load() -> None:
    """Requests of all lengths arrive while others are decoded, and each has the text that it has alone.

    GPT2_TEST_LARGE=1 makes it 1,000 requests, which take some minutes.
    """
    count = 1000 if os.environ.get("GPT2_TEST_LARGE") == "1" else 60
    prompts = ["the cat sat on the mat " * (1 + i % 5) + "x" * (i % 7) for i in range(count)]
    with running(slots=8, queue=200, block_size=160) as one:
        asked = [{"prompt": prompt, "max_tokens": 25, "seed": i, "logprobs": 1} for i, prompt in enumerate(prompts)]
        alone = [one.post(**fields).json()["choices"] for fields in asked]
        with ThreadPoolExecutor(20) as pool:
            jobs = [pool.submit(one.post, **fields) for fields in asked]
            together = [job.result().json()["choices"] for job in jobs]
    assert [i for i in range(len(prompts)) if together[i] != alone[i]] == []
