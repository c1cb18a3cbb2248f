"""Prompts decoded side by side, beside each of them alone."""

import itertools

import pytest
import torch

from gpt2.errors import UserError
from gpt2.generation.batch import stream_batch
from gpt2.generation.engine import stream_tokens
from gpt2.model import GPT, GPTConfig

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13]]


def toy(**changes: object) -> GPT:
    """A model whose predictions differ much from token to token and from position to position."""
    torch.manual_seed(0)
    settings = {"block_size": 16, "vocab_size": 50, "n_layer": 2, "n_head": 2, "n_embd": 16}
    model = GPT(GPTConfig(**settings | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("flash", [True, False])
def test_each_row_is_what_it_is_alone(flash: bool) -> None:
    model = toy(flash=flash)
    together = torch.cat(list(stream_batch(model, PROMPTS, temperature=0)), dim=1).tolist()
    assert [len(row) for row in together] == [16 - 7 + 1] * 4, "the longest fills the positions"
    for prompt, row in zip(PROMPTS, together, strict=True):
        alone = stream_tokens(model, torch.tensor([prompt]), temperature=0)
        assert row == [int(token) for token in itertools.islice(alone, len(row))]
    assert len({tuple(row) for row in together}) == 4, "they differ, so that rows cannot be mixed up unseen"


def test_sampling_follows_the_generator_and_the_vocabulary() -> None:
    def draw(seed: int) -> list:
        tokens = stream_batch(toy(), PROMPTS, generator=torch.Generator().manual_seed(seed), vocab_size=7)
        return torch.cat(list(tokens), dim=1).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert max(map(max, draw(1))) < 7


def test_logits_stay_in_float32_under_autocast() -> None:
    model = toy()
    with torch.no_grad():  # token 1 is a little likelier than token 0, by less than bfloat16 can tell at 100
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight.zero_()
        model.transformer.wte.weight[:2] = 100 / 16
        model.transformer.wte.weight[1] += 1e-3
    tokens = next(stream_batch(model, PROMPTS, temperature=0, dtype="bfloat16"))
    assert tokens.tolist() == [[1]] * 4


def test_a_broken_model_is_said() -> None:
    model = toy()
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(UserError, match="no finite numbers"):
        next(stream_batch(model, PROMPTS))
