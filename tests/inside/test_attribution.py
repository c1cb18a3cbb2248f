"""Shares of a logit add up to it, and each is what the logit loses without its part, as far as that is linear."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from varied import CONFIG, varied

from gpt2.inside.attribution import attribute
from gpt2.inside.forward import trace
from gpt2.model import GPT

POSITIONS = torch.tensor([0, 5, 23])
TARGETS, AGAINST = torch.tensor([7, 8, 9]), torch.tensor([1, 2, 52])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("against", [None, AGAINST])
def test_the_shares_add_up_to_the_logit_of_the_model(bias: bool, against: Tensor | None, text: Tensor) -> None:
    model = varied(replace(CONFIG, bias=bias))
    found = attribute(model, text, POSITIONS, TARGETS, against)
    assert model.training
    logits = model.eval()(text[None], text[None])[0][0].detach()
    expected = logits[POSITIONS, TARGETS] - (0 if against is None else logits[POSITIONS, against])
    assert found.logit.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.total.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert found.heads.shape == (3, 3, 2)
    assert float(found.heads.abs().min()) > 1e-4


@torch.no_grad()
def test_each_share_is_what_its_part_adds_to_the_stream(model: GPT, text: Tensor) -> None:
    """With ln_f written out, in float64: its mean and scale of the complete stream, then a dot product."""
    model.double()
    found = attribute(model, text, POSITIONS, TARGETS)
    run, net = trace(model, text), model.transformer
    for i, (t, target) in enumerate(zip(POSITIONS.tolist(), TARGETS.tolist(), strict=True)):
        x = run.streams[-1, t]
        scale = ((x - x.mean()) ** 2).mean().add(1e-5).sqrt()

        def share(part: Tensor, scale: Tensor = scale, target: int = target) -> float:
            return float(((part - part.mean()) / scale * net.ln_f.weight) @ net.wte.weight[target])

        assert float(found.token[i]) == pytest.approx(share(net.wte.weight[text[t]]), abs=1e-9)
        assert float(found.position[i]) == pytest.approx(share(net.wpe.weight[t]), abs=1e-9)
        assert float(found.final_bias[i]) == pytest.approx(float(net.ln_f.bias @ net.wte.weight[target]), abs=1e-9)
        for layer, block in enumerate(net.h):
            assert float(found.mlps[i, layer]) == pytest.approx(share(run.mlps[layer, t]), abs=1e-9)
            assert float(found.attention_biases[i, layer]) == pytest.approx(share(block.attn.c_proj.bias), abs=1e-9)
            for head in range(2):
                kept = torch.zeros(16, dtype=torch.float64)
                kept[8 * head : 8 * head + 8] = run.heads[layer, t, 8 * head : 8 * head + 8]
                assert float(found.heads[i, layer, head]) == pytest.approx(
                    share(block.attn.c_proj.weight @ kept), abs=1e-9
                )
