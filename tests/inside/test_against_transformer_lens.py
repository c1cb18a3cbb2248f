"""Attention and the logit lens against TransformerLens 4, on our export for transformers.

GPT2_TEST_LARGE=1 also does it with the shape of the 124M model.
"""

import os

import pytest
import torch
from varied import varied

from gpt2.formats.export import export
from gpt2.formats.source import Source, StoredTensor
from gpt2.inside.attention import attention_weights
from gpt2.inside.attribution import attribute
from gpt2.inside.predictions import logit_lens
from gpt2.model import GPT, GPTConfig

bridge = pytest.importorskip(
    "transformer_lens.model_bridge", reason="needs TransformerLens: pip install transformer-lens"
)
LARGE = pytest.mark.skipif(os.environ.get("GPT2_TEST_LARGE") != "1", reason="needs GPT2_TEST_LARGE=1")


@pytest.fixture(scope="module", params=["tiny", pytest.param("124M", marks=LARGE)])
def model(request: pytest.FixtureRequest) -> GPT:
    return varied() if request.param == "tiny" else GPT(GPTConfig()).eval()


@pytest.fixture(scope="module")
def theirs(model: GPT, tmp_path_factory: pytest.TempPathFactory):
    tmp_path = tmp_path_factory.mktemp("export")
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    export(Source(model.config, tensors, lambda: None, "a test"), "hf", tmp_path / "hf", print)
    return bridge.TransformerBridge.boot_transformers(str(tmp_path / "hf"), device="cpu")


@pytest.mark.parametrize("seed", range(10))
@torch.no_grad()
def test_attention_lens_and_attribution_are_those_of_transformer_lens(model: GPT, theirs, seed: int) -> None:
    text = torch.randint(53, (24,), generator=torch.Generator().manual_seed(seed))
    logits, cache = theirs.run_with_cache(text[None])
    attention = attention_weights(model, text[None])
    lens = logit_lens(model, text)
    for layer in range(model.config.n_layer):
        assert torch.allclose(attention[layer], cache["pattern", layer], atol=1e-4)
        own = theirs.unembed(theirs.ln_final(cache["resid_post", layer])).log_softmax(-1)[0]
        ids, log_probs = lens.layers.top_ids[layer], lens.layers.top_log_probs[layer]
        # The order of two almost equal ones is left open.
        assert torch.allclose(own.gather(1, ids), log_probs, atol=1e-4)
        assert torch.allclose(own.topk(5, dim=1).values, log_probs, atol=1e-4)
    positions, targets = torch.arange(24), torch.full((24,), 5)
    shares = attribute(model, text, positions, targets)
    assert torch.allclose(shares.logit, logits[0, :, 5], atol=1e-4)
