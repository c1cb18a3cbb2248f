"""Text in and text out: complete characters, the ends of a text, the seed, and wrong settings."""

import numpy as np
import pytest
import torch
from generation.models import greedy, random_model
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.generation.text import TextStream, decode, encode_prompt, engine_for, generate, request_for, stream_text
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, CharTokenizer


def test_seed_decides_the_text() -> None:
    model, tokenizer = random_model(), ByteTokenizer()
    first = generate(model, tokenizer, "ab", max_new_tokens=30, seed=1)
    assert first == generate(model, tokenizer, "ab", max_new_tokens=30, seed=1)
    assert first != generate(model, tokenizer, "ab", max_new_tokens=30, seed=2)


def test_a_list_of_prompts_gives_the_texts_that_each_gets_alone() -> None:
    model, tokenizer = random_model(), ByteTokenizer()
    prompts = ["ab", "", "a longer prompt than the context", "ab"]
    texts = generate(model, tokenizer, prompts, max_new_tokens=12)
    assert texts == [generate(model, tokenizer, prompt, max_new_tokens=12) for prompt in prompts]
    assert generate(model, tokenizer, []) == []


def test_greedy_text_is_that_of_the_likeliest_tokens() -> None:
    model, tokenizer = random_model(), ByteTokenizer()
    expected = greedy(model, [*b"ab"], 12)
    assert generate(model, tokenizer, "ab", max_new_tokens=12, temperature=0) == tokenizer.decode(expected)


class Scripted(GPT):
    """Predicts the bytes of a script, whatever the prompt."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=1, n_embd=4))
        self.script = iter(script)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.full((1, 257), -1e9)
        logits[0, next(self.script)] = 0.0
        return logits


def test_text_ends_at_end_of_text() -> None:
    assert generate(Scripted([*b"hey", 256, *b"more"]), ByteTokenizer(), "x") == "hey"


def test_pieces_are_complete_characters() -> None:
    text = "né☕!"
    pieces = list(stream_text(Scripted([*text.encode(), 256]), ByteTokenizer(), "x"))
    assert pieces == ["n", "é", "☕", "!"]


def test_bytes_that_are_not_text_become_replacement_characters() -> None:
    assert generate(Scripted([0xC3, 256]), ByteTokenizer(), "x") == "\ufffd"


def test_a_stop_string_ends_the_text_before_it() -> None:
    def texts(stop: list[str]) -> str:
        return generate(Scripted([*b"abcabd!ab", 256]), ByteTokenizer(), "x", stop=stop)

    assert texts(["abd"]) == "abc"
    assert texts(["cabd", "!"]) == "ab"
    assert texts(["b", "ab"]) == ""
    assert texts(["abX"]) == "abcabd!ab"
    assert generate(Scripted([*b"abcabd", 256]), ByteTokenizer(), "x", stop="ca") == "ab"


def test_a_stop_string_frees_the_slot() -> None:
    tokenizer, model = ByteTokenizer(), Scripted([*b"abcabd!ab", 256])
    requests = [request_for(tokenizer, "x")]
    engine = engine_for(model, tokenizer, requests)
    pieces = list(decode(engine, tokenizer, requests, ["bd"]))
    assert [piece.ending for piece in pieces] == [None] * 5 + ["stop"]
    assert engine.is_idle


@given(st.text("abé", max_size=12), st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_stream_is_the_text_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream, pieces = TextStream(ByteTokenizer(), stops), []
    for byte in text.encode():
        pieces.append(stream.push(byte))
        shown = "".join(pieces)
        if stream.is_stopped:
            break
        assert not any(stop in shown for stop in stops), "nothing is shown that must be taken back"
    else:
        pieces.append(stream.finish())
    # a stop string counts as soon as it is complete, so the earliest end decides, and then the earliest beginning
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first_end = min(ends, default=None)
    found = len(text) if first_end is None else min(begin for end, begin in ends if end == first_end[0])
    assert "".join(pieces) == text[:found]


def test_the_model_keeps_its_mode() -> None:
    model = random_model(dropout=0.5).train()
    generate(model, ByteTokenizer(), "a", max_new_tokens=2)
    with pytest.raises(UserError):
        generate(model, CharTokenizer("a"), "b")
    assert model.training


@pytest.mark.parametrize(
    ("tokenizer", "ids"), [(ByteTokenizer(), [256]), (CharTokenizer("\nab"), [0]), (CharTokenizer("ab"), [0])]
)
def test_an_empty_prompt_becomes_one_id(tokenizer, ids: list[int]) -> None:
    assert encode_prompt(tokenizer, "") == ids


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, "5", 2.0, None, True]),
        ("seed", [-1, 2**63, None, "1", 1.5]),
        ("n_logprobs", [-1, "3", 1.0]),
        *((name, ["1", None, True, [1.0]]) for name in ("temperature", "min_p", "repetition_penalty")),
        *((name, ["1", None, True, -101]) for name in ("presence_penalty", "frequency_penalty")),
        ("temperature", [-1.0]),
        ("top_k", [-1, 2.0, "a", True]),
        ("top_p", [0, "0.5", True]),
        (
            "logit_bias",
            [None, 3, [5, 6], {"5": 1.0}, {5: "1"}, {-1: 1.0}, {257: 1.0}, {5: 1e31}, {5: float("nan")}, "ab"],
        ),
        ("allowed", [3, "ab", [1.0], [-3], [257], [], {"a"}, torch.tensor([1]), torch.tensor(1)]),
        ("stop", [None, 3, [3], "", ["a", ""]]),
        ("temprature", [1.0]),
        ("max_length", [5]),
    ],
)
def test_invalid_settings_are_refused_in_one_line(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(UserError, match=rf"^[^\n]*\b{name}\b[^\n]*$"):
            generate(random_model(vocab_size=257), ByteTokenizer(), "a", **{name: value})


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"logit_bias": {97: 50, 98: 49.5}}, {"logit_bias": ((97, 50.0), (98, 49.5))}),
        ({"logit_bias": [[97, 50]]}, {"logit_bias": ((97, 50.0),)}),
        ({"allowed": [97, 98]}, {"allowed": (97, 98)}),
        ({"allowed": np.arange(97, 99)}, {"allowed": (97, 98)}),
        ({"seed": np.int64(3), "temperature": np.float32(0.5)}, {"seed": 3, "temperature": 0.5}),
    ],
)
def test_ids_and_biases_may_be_in_lists_and_mappings(settings: dict, same: dict) -> None:
    texts = [generate(random_model(), ByteTokenizer(), "a", max_new_tokens=9, **s) for s in (settings, same)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("prompt", [None, 3, b"a", ("a", "b"), [1, 2], [["a"]], ["a", None], torch.tensor([1])])
def test_a_prompt_of_another_type_is_refused(prompt) -> None:
    with pytest.raises(UserError, match=r"^the prompt .* is no text"):
        generate(random_model(), ByteTokenizer(), prompt)


def test_what_is_no_model_and_no_tokenizer_is_refused() -> None:
    model, tokenizer = random_model(), ByteTokenizer()
    for wrong in ("gpt2", None, tokenizer, (model, tokenizer)):
        with pytest.raises(UserError, match=r"^model is [^\n]* no GPT[^\n]*$"):
            generate(wrong, tokenizer, "a")
    with pytest.raises(UserError, match="model is compiled; give the one"):
        generate(torch.compile(model), tokenizer, "a")
    for wrong in ("hello", None, model, lambda text: [1]):
        with pytest.raises(UserError, match=r"^tokenizer is [^\n]* none of this package[^\n]*$"):
            list(stream_text(model, wrong))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"the prompt has the token id 122; the model's ids are 0 … 99"):
        generate(random_model(vocab_size=100), ByteTokenizer(), "z")


def test_a_bias_that_leaves_no_token_is_refused() -> None:
    model, ban = random_model(vocab_size=257), -float("inf")
    for limits in ({"logit_bias": dict.fromkeys(range(257), ban)}, {"logit_bias": {65: -1e39}, "allowed": [65]}):
        with pytest.raises(UserError, match="logit_bias bans all tokens"):
            generate(model, ByteTokenizer(), "a", **limits)
    left = dict.fromkeys(range(1, 257), ban)
    assert generate(model, ByteTokenizer(), "a", max_new_tokens=2, logit_bias=left) == "\0\0"
    assert generate(model, ByteTokenizer(), "a", max_new_tokens=1, logit_bias={65: -1e30}, allowed=[65]) == "A"


def test_a_prompt_that_is_not_text_is_refused() -> None:
    with pytest.raises(UserError, match="not valid text"):
        encode_prompt(ByteTokenizer(), "\udcff")
