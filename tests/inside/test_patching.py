"""Patching against complete forward passes in which a hook replaces the activation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from varied import CONFIG, varied

from gpt2.errors import UserError
from gpt2.inside import patching
from gpt2.inside.patching import patch
from gpt2.model import GPT

ANSWER, OTHER = 3, 44


@torch.no_grad()
def difference(model: GPT, text: Tensor) -> float:
    logits = model.eval()(text[None])[0][0, -1]
    return float(logits[ANSWER] - logits[OTHER])


@torch.no_grad()
def inputs_of(model: GPT, module: torch.nn.Module, text: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.eval()(text[None])
    hook.remove()
    return seen[0][0].clone()


@pytest.mark.parametrize(("flash", "tokens", "batches"), [(True, 512, 6), (False, 40, 9)])
def test_every_value_is_that_of_a_forward_pass_with_a_hook(
    flash: bool, tokens: int, batches: int, text: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 40 tokens, positions 3 to 23 make groups of 1, 2, 2, 2, 2, 3, 4 and 5."""
    model = varied(replace(CONFIG, flash=flash))
    monkeypatch.setattr(patching, "POSITIONS", 5)
    monkeypatch.setattr(patching, "TOKENS", tokens)
    clean, corrupted = text, text.clone()
    corrupted[3], corrupted[9] = 0, 1
    done: list[tuple[int, int]] = []
    found = patch(model, clean, corrupted, ANSWER, OTHER, progress=lambda *work: done.append(work))
    assert model.training
    assert done == [(i, 3 * batches) for i in range(1, 3 * batches + 1)]
    before = difference(model, corrupted)
    assert found.corrupted == pytest.approx(before, abs=1e-4)
    assert found.clean == pytest.approx(difference(model, clean), abs=1e-4)
    streams, heads = torch.zeros(3, 24), torch.zeros(3, 2)
    for layer, block in enumerate(model.transformer.h):
        new = inputs_of(model, block, clean)
        for position in range(24):

            def put(_, given: tuple, position: int = position, new: Tensor = new) -> tuple:
                given[0][0, position] = new[position]
                return given

            hook = block.register_forward_pre_hook(put)
            streams[layer, position] = difference(model, corrupted) - before
            hook.remove()
        outputs = inputs_of(model, block.attn.c_proj, clean)
        for head in range(2):

            def put_head(_, given: tuple, head: int = head, outputs: Tensor = outputs) -> tuple:
                x = given[0].clone()
                x[0, :, 8 * head : 8 * head + 8] = outputs[:, 8 * head : 8 * head + 8]
                return (x,)

            hook = block.attn.c_proj.register_forward_pre_hook(put_head)
            heads[layer, head] = difference(model, corrupted) - before
            hook.remove()
    assert torch.allclose(found.streams, streams, atol=1e-4)
    assert torch.allclose(found.heads, heads, atol=1e-4)
    assert float(streams.abs().max()) > 0.1 and float(heads.abs().max()) > 0.1


def test_patching_everything_that_differs_gives_the_clean_result(model: GPT, text: Tensor) -> None:
    """Of texts that differ in one token, its embedding is everything; of those that differ in two, it is not."""
    corrupted = text.clone()
    corrupted[6] = (text[6] + 1) % 53
    found = patch(model, text, corrupted, ANSWER, OTHER)
    assert found.corrupted + float(found.streams[0, 6]) == pytest.approx(found.clean, abs=1e-4)
    assert not bool(found.streams[:, :6].any())
    corrupted[-1] = (text[-1] + 1) % 53
    found = patch(model, text, corrupted, ANSWER, OTHER)
    assert found.corrupted + float(found.streams[0, 23]) != pytest.approx(found.clean, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-1], "have 24 and 23 tokens; give texts of the same number"),
        (lambda text: text, "have the same tokens"),
        (lambda text: text.repeat(2), "48 tokens, and the model sees 24"),
    ],
)
def test_texts_that_cannot_be_compared_are_refused(change, message: str, model: GPT, text: Tensor) -> None:
    with pytest.raises(UserError, match=message):
        patch(model, text, change(text), ANSWER, OTHER)
