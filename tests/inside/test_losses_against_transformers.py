"""Losses and attributions of 10 texts, against transformers' logits in float64.

GPT2_TEST_LARGE=1 also does it with the shape of the 124M model, which takes about a minute.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from varied import CONFIG, varied

from gpt2.formats.export import export
from gpt2.formats.source import Source, StoredTensor
from gpt2.inside.attribution import attribute
from gpt2.inside.forward import trace
from gpt2.inside.predictions import logit_lens, losses
from gpt2.model import GPT, GPTConfig

transformers: Any = pytest.importorskip("transformers")
LARGE = pytest.mark.skipif(os.environ.get("GPT2_TEST_LARGE") != "1", reason="needs GPT2_TEST_LARGE=1")


@pytest.mark.parametrize("size", ["tiny", pytest.param("124M", marks=LARGE)])
@torch.no_grad()
def test_losses_and_attributions_of_ten_texts_are_those_of_transformers(size: str, tmp_path: Path) -> None:
    model = varied(CONFIG) if size == "tiny" else GPT(GPTConfig())
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    export(Source(model.config, tensors, lambda: None, "a test"), "hf", tmp_path / "hf", print)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    length = min(64, model.config.block_size)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        idx = torch.randint(model.config.vocab_size, (length,), generator=generator)
        logits = theirs(idx[None]).logits[0].double()
        expected = -logits.log_softmax(dim=1)[:-1].gather(1, idx[1:, None])[:, 0]
        run = trace(model, idx)
        for found in (losses(model, idx), logit_lens(model, idx, run=run).last):
            assert torch.allclose(found.loss.double(), expected, rtol=0, atol=1e-5)
        shares = attribute(model, idx[:-1], torch.arange(length - 1), idx[1:])
        own = logits[:-1].gather(1, idx[1:, None])[:, 0]
        assert torch.allclose(shares.total.double(), own, rtol=0, atol=1e-4)
