"""Generated tokens and text: the cache, the seed, the end of the text, and wrong settings."""

from itertools import islice

import pytest
import torch

from gpt2.errors import UserError
from gpt2.generation.engine import encode_prompt, generate, stream_text, stream_tokens
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, CharTokenizer


def random_model(vocab_size: int = 257, block_size: int = 16, **changes) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=32, **changes)
    model = GPT(config).eval()
    for parameter in model.parameters():
        parameter.data *= 5  # so that the likeliest token is not always the last one again
    return model


def take(model: GPT, prompt: torch.Tensor, n: int, **settings) -> list[list[int]]:
    return torch.cat(list(islice(stream_tokens(model, prompt, **settings), n)), dim=1).tolist()


@pytest.mark.parametrize("prompt_length", [1, 7, 15, 16, 17, 40])
def test_greedy_tokens_are_the_same_with_and_without_cache_across_the_context(prompt_length: int) -> None:
    model = random_model()
    prompt = torch.randint(0, 257, (2, prompt_length), generator=torch.Generator().manual_seed(1))
    cached = take(model, prompt, 40, temperature=0)
    assert cached == take(model, prompt, 40, temperature=0, use_cache=False)
    assert len(set(cached[0])) > 5
    idx = prompt  # nanoGPT's computation gives the same tokens
    for _ in range(40):
        logits, _ = model(idx[:, -16:])
        idx = torch.cat([idx, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert cached == idx[:, prompt_length:].tolist()


def test_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    seen = []
    hidden = GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda self, idx, *rest: seen.append(idx.size(1)) or hidden(self, idx, *rest))
    take(model, torch.zeros(1, 4, dtype=torch.int64), 14, temperature=0)
    assert seen == [4] + [1] * 12 + [16]


def test_ids_beyond_the_tokenizer_are_never_drawn() -> None:
    model = random_model(vocab_size=300)
    tokens = take(model, torch.zeros(50, 1, dtype=torch.int64), 20, temperature=5.0, vocab_size=257)
    assert max(max(row) for row in tokens) < 257
    without = take(model, torch.zeros(50, 1, dtype=torch.int64), 20, temperature=5.0)
    assert max(max(row) for row in without) >= 257


def test_seed_decides_the_text() -> None:
    model, tokenizer = random_model(), ByteTokenizer()
    first = generate(model, tokenizer, "ab", max_new_tokens=30, seed=1)
    assert first == generate(model, tokenizer, "ab", max_new_tokens=30, seed=1)
    assert first != generate(model, tokenizer, "ab", max_new_tokens=30, seed=2)


class Scripted(GPT):
    """Predicts the bytes of a script, whatever the prompt."""

    def __init__(self, script: list[int]) -> None:
        super().__init__(GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=1, n_embd=4))
        self.script = iter(script)

    def forward(self, idx, targets=None, cache=None):
        logits = torch.full((1, 1, 257), -1e9)
        logits[0, 0, next(self.script)] = 0.0
        return logits, None


def test_text_ends_at_end_of_text() -> None:
    assert generate(Scripted([*b"hey", 256, *b"more"]), ByteTokenizer(), "x") == "hey"


def test_pieces_are_complete_characters() -> None:
    text = "né☕!"
    pieces = list(stream_text(Scripted([*text.encode(), 256]), ByteTokenizer(), "x"))
    assert pieces == ["n", "é", "☕", "!"]


def test_bytes_that_are_not_text_become_replacement_characters() -> None:
    assert generate(Scripted([0xC3, 256]), ByteTokenizer(), "x") == "\ufffd"


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
    "settings",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"temperature": float("nan")},
        {"temperature": 1e-45},
        {"seed": 2**63},
        {"seed": -1},
    ],
)
def test_invalid_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        generate(random_model(), ByteTokenizer(), "a", **settings)


def test_bfloat16_decodes_with_its_own_cache() -> None:
    tokens = take(random_model(), torch.zeros(1, 3, dtype=torch.int64), 20, temperature=0, dtype="bfloat16")
    assert len(tokens[0]) == 20


def test_a_model_in_bfloat16_decodes_too() -> None:
    tokens = take(random_model().to(torch.bfloat16), torch.zeros(1, 3, dtype=torch.int64), 20, temperature=0)
    assert len(tokens[0]) == 20


def test_a_prompt_that_is_not_text_is_refused() -> None:
    with pytest.raises(UserError, match="not valid text"):
        encode_prompt(ByteTokenizer(), "\udcff")
