"""Models are prepared for decoding in smaller dtypes: what changes, and how much."""

import pytest
import torch
from generation.models import greedy, random_model
from torch import nn

from gpt2.generation.complete import complete
from gpt2.generation.sampling import Sampling
from gpt2.generation.weights import for_decoding, quantized, stored_bytes
from gpt2.model import GPT, GPTConfig

GREEDY = Sampling(temperature=0)


def test_rows_are_rounded_to_the_nearest_of_255_values() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    rounded, scales = quantized(weight)
    assert rounded.dtype == torch.int8
    error = (rounded.double() * scales.double()[:, None] - weight.double()).abs()
    step = weight.double().abs().amax(1, keepdim=True) / 127
    assert (error <= step / 2 + 1e-7).all()
    assert rounded.abs().amax(1).tolist() == [127] * 3 + [0] + [127] * 36


@pytest.mark.parametrize(("dtype", "quantize", "tolerance"), [
    ("bfloat16", "none", 2e-2), ("float16", "none", 2e-3), ("float32", "int8", 3e-2), ("bfloat16", "int8", 4e-2)
])  # fmt: skip
def test_logits_stay_close(dtype: str, quantize, tolerance: float) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=300, n_layer=2, n_head=2, n_embd=64)).eval()
    prepared = for_decoding(model, dtype, quantize)
    idx = torch.randint(300, (3, 20))
    with torch.no_grad():
        logits, found = model.head(model.hidden(idx)), prepared.head(prepared.hidden(idx))
    assert found.dtype == torch.float32
    difference = (found - logits).abs().max() / logits.abs().max()
    assert 0 < difference < tolerance


def test_bytes_follow_the_dtype_and_the_model_is_unchanged() -> None:
    model = random_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
    rows = sum(len(p) for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
    total = stored_bytes(model)
    assert for_decoding(model) is model
    assert stored_bytes(for_decoding(model, "bfloat16")) == total - 2 * matrices
    assert stored_bytes(for_decoding(model, quantize="int8")) == total - 3 * matrices + 4 * rows
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.is_floating_point() and p.requires_grad for p in model.parameters())


def test_layers_of_ones_own_are_prepared_too() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 16, bias=False), nn.Linear(16, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(torch.relu(self.up(x)) ** 2)

    model = random_model()
    model.transformer.h[0].mlp = Gated()
    prepared = for_decoding(model, "bfloat16")
    assert prepared.transformer.h[0].mlp.up.weight.dtype == torch.bfloat16
    assert complete(model, [[1]], 5, GREEDY) == [greedy(model, [1], 5)]
    assert len(complete(prepared, [[1]], 20, GREEDY)[0]) == 20


def test_one_text_and_a_batch_give_the_same_tokens_in_int8() -> None:
    model = for_decoding(random_model(block_size=64), "float32", "int8")
    prompts = [[i, i + 1] for i in range(0, 24, 2)]
    assert complete(model, prompts, 8, GREEDY) == [complete(model, [prompt], 8, GREEDY)[0] for prompt in prompts]
