"""Prompts that are decoded in one batch get the tokens that each of them gets alone."""

import itertools

import pytest
import torch

from gpt2.errors import UserError
from gpt2.generation.batch import stream_batch
from gpt2.generation.engine import stream_tokens
from gpt2.model import GPT, GPTConfig

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13]]


def toy(**changes: object) -> GPT:
    """Return a model whose predictions differ much from token to token and from position to position."""
    torch.manual_seed(0)
    settings = {"block_size": 16, "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**settings | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("flash", [True, False])
def test_each_sequence_gets_the_tokens_that_it_gets_alone(flash: bool) -> None:
    model = toy(flash=flash)
    batch = torch.cat(list(stream_batch(model, PROMPTS, temperature=0)), dim=1).tolist()
    assert [len(tokens) for tokens in batch] == [16 - 7 + 1] * 4, "the longest sequence fills the context"
    for prompt, tokens in zip(PROMPTS, batch, strict=True):
        alone = stream_tokens(model, torch.tensor([prompt]), temperature=0)
        assert tokens == [int(token) for token in itertools.islice(alone, len(tokens))]
    assert len({tuple(tokens) for tokens in batch}) == 4, "they differ, so that a mix-up would be seen"


def test_sampling_follows_the_generator_and_the_vocabulary() -> None:
    def draw(seed: int) -> list:
        tokens = stream_batch(toy(), PROMPTS, generator=torch.Generator().manual_seed(seed), vocab_size=7)
        return torch.cat(list(tokens), dim=1).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert max(map(max, draw(1))) < 7


def test_logits_stay_in_float32_under_autocast() -> None:
    model = toy()
    with torch.no_grad():  # token 1 is likelier than token 0 by less than the resolution of bfloat16 near 100
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[:2] = 100 / 16
        model.transformer.wte.weight[1] += 1e-3
    tokens = next(stream_batch(model, PROMPTS, temperature=0, dtype="bfloat16"))
    assert tokens.tolist() == [[1]] * 4


def test_a_model_without_finite_numbers_is_reported() -> None:
    model = toy()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match="are not finite"):
        next(stream_batch(model, PROMPTS))
