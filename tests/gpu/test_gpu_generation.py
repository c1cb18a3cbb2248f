"""Decoding on a GPU: replayed steps compute what the model computes, and the host does not wait for the device."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.model import GPT, GPTConfig

SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "top_k": Sampling(top_k=40, top_p=0.9),
    "penalties": Sampling(temperature=0, frequency_penalty=0.5, repetition_penalty=1.2),
    "bias": Sampling(temperature=0, logit_bias=((3, 2.0), (4, float("-inf")))),
}


def large_logits(where: torch.device) -> GPT:
    """Return a model whose logits are so far apart that rounding changes no token."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=512, vocab_size=500, n_layer=3, n_head=4, n_embd=128)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model.to(where)


def after_each_other(model: GPT, prompt: list[int], n: int) -> list[int]:
    """Return the `n` likeliest tokens that follow a prompt, each computed from all tokens before it."""
    tokens = list(prompt)
    for _ in range(n):
        logits, _ = model(torch.tensor([tokens], device=model.transformer.wpe.weight.device))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@torch.no_grad()
def test_replayed_steps_give_the_tokens_of_the_model(where: torch.device) -> None:
    """Texts of different lengths join and leave, and some pass 256 positions, where steps get another shape."""
    model = large_logits(where)
    prompts = [torch.randint(500, (size,)).tolist() for size in (3, 250, 17, 100)]
    new = [40, 20, 8, 30]
    engine = Engine(model, slots=3, native=False)
    requests = [Request(prompt, n, Sampling(temperature=0)) for prompt, n in zip(prompts, new, strict=True)]
    for request in requests:
        engine.submit(request)
    texts: dict[int, list[int]] = {id(request): [] for request in requests}
    for token in engine.run():
        texts[id(token.request)].append(token.id)
    expected = [after_each_other(model, prompt, n) for prompt, n in zip(prompts, new, strict=True)]
    assert list(texts.values()) == expected


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_nothing_waits_for_the_gpu_in_a_step_of_decoding(
    kind: str, where: torch.device, nothing_waits: Callable[[], AbstractContextManager]
) -> None:
    """The host waits for the copy of the step before, which does not count: the device is busy meanwhile."""
    engine = Engine(large_logits(where).to(torch.bfloat16), slots=2, native=False)
    for seed in range(2):
        engine.submit(Request([1, 2, 3 + seed], 40, SAMPLINGS[kind], seed, n_logprobs=2))
    for _ in range(5):  # the prompts, and the steps that are captured
        engine.step()
    with nothing_waits():
        found = [token for _ in range(10) for token in engine.step()]
    assert len(found) == 20


@torch.no_grad()
def test_captured_steps_keep_one_set_of_logits(where: torch.device) -> None:
    """Each number of texts has a graph of its own; they would be 4 MB here if each graph kept its own."""
    engine = Engine(large_logits(where), slots=64, native=False)
    used = []
    for _ in range(2):
        for n in range(1, 65):
            engine.submit(Request([1, 2, 3], n + 2, Sampling(temperature=0)))
        assert sum(1 for _ in engine.run()) == sum(range(3, 67))
        used.append(torch.cuda.memory_allocated(where) if where.type == "cuda" else 0)
    assert used[1] - used[0] < 1e6
