"""`gpt2 validate` compares correct models with transformers without a false alarm."""

import pytest
import torch

from gpt2.evaluation.against_transformers import PROMPT_TOKENS, compare
from gpt2.formats.export import probe
from gpt2.model import GPT, GPTConfig

pytest.importorskip("transformers", reason="needs transformers")


def test_the_token_id_0_in_a_prompt_is_not_padding() -> None:
    config = GPTConfig(block_size=32, vocab_size=8, n_layer=2, n_head=2, n_embd=16)
    assert 0 in probe(config, None)[0, :PROMPT_TOKENS]
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():  # predictions depend on every token of the context
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    comparison = compare(model, print)
    assert len(set(comparison.greedy)) > 1
    assert comparison.transformers_greedy == comparison.greedy
    assert comparison.agrees
