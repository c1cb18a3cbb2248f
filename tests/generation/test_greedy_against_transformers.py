"""Greedy texts are those of transformers' generate, token by token, in every way in which a text can be decoded."""

import functools
import random

import pytest
import torch

from gpt2.formats.huggingface import config_values, huggingface_tensors
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT, GPTConfig

NEW_TOKENS = 200
LENGTHS = (1, 37, 64, 129, 250)
SEED = 0
"""Of the model. With it, the two likeliest tokens of a step are never so close that rounding could decide."""


@functools.cache
def model_and_texts() -> tuple[GPT, list[tuple[list[int], list[int]]]]:
    """A random model, and twenty prompts with what transformers generates; some begin in the same way."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(SEED)
    model = GPT(GPTConfig(block_size=512, vocab_size=331, n_layer=2, n_head=4, n_embd=64)).eval()
    for parameter in model.parameters():
        parameter.data *= 6 if parameter.dim() > 1 else 1  # wide, so that the texts do not repeat a token for ever
    values = {k: v for k, v in config_values(model.config).items() if k not in ("architectures", "model_type")}
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, bos_token_id=None, eos_token_id=None))
    reference.load_state_dict(dict(huggingface_tensors(model)), strict=False)
    reference.tie_weights()
    reference.eval()
    rng = random.Random(0)
    stem = [rng.randrange(331) for _ in range(110)]
    texts: list[tuple[list[int], list[int]]] = []
    for length in LENGTHS:
        prompts = [[rng.randrange(331) for _ in range(length)] for _ in range(4)]
        prompts[1][: len(stem)] = stem[:length]
        prompts[2][: len(stem)] = stem[:length]
        ids = torch.tensor(prompts)
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0, "do_sample": False}
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        texts += zip(prompts, out[:, length:].tolist(), strict=True)
    return model, texts


def test_the_texts_are_varied_and_their_tokens_clear() -> None:
    model, texts = model_and_texts()
    assert min(len(set(new)) for _, new in texts) > 20
    gaps = []
    with torch.no_grad():
        for prompt, new in texts:
            logits = model.double().head(model.hidden(torch.tensor([prompt + new])))[0, len(prompt) - 1 : -1]
            top = logits.topk(2).values
            gaps.append((top[:, 0] - top[:, 1]).min().item())
            model.float()
    assert min(gaps) > 1e-4


@pytest.mark.parametrize(
    ("slots", "settings"),
    [
        (1, {}),
        (1, {"prefix_bytes": 10**8}),
        (20, {}),
        (7, {"prefill_tokens": 64, "prefix_bytes": 10**8}),
        (7, {"prefill_tokens": 64, "prefix_bytes": 10**8, "native": False}),
    ],
)
def test_greedy_texts_equal_those_of_transformers(slots: int, settings: dict) -> None:
    """Alone; after texts that begin in the same way; together; and joining the others by chunks, also in PyTorch."""
    model, texts = model_and_texts()
    engine = Engine(model, slots=slots, **settings)
    requests = [Request(prompt, NEW_TOKENS, Sampling(temperature=0)) for prompt, _ in texts]
    found: dict[Request, list[int]] = {request: [] for request in requests}
    for request in requests:
        engine.submit(request)
    for token in engine.run():
        found[token.request].append(token.id)
    assert list(found.values()) == [new for _, new in texts]
