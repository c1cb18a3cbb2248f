"""Numbers on a GPU, compiled and not, in every dtype, compared with float64 on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.chunked_loss import TrainingLoss, chunked_cross_entropy
from gpt2.device import autocast
from gpt2.documents import document_blocks
from gpt2.model import GPT, GPTConfig
from gpt2.optim.muon import Muon
from gpt2.optim.optimizers import make_optimizers, update

Compiler = Callable[[Any], Any]
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
"""Largest relative errors of losses and gradients."""
SCALE = 2.0**10
"""Factor on the loss in float16, as that of a gradient scaler."""


def error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected tensor."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_chunked_loss_and_its_gradients(
    dtype: str,
    is_compiled: bool,
    where: torch.device,
    compiler: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three chunks of unequal size, ignored targets, and tokens that are never targets."""
    torch.manual_seed(0)
    positions, vocab_size, width = 640, 1003, 64
    monkeypatch.setattr("gpt2.chunked_loss.chunk_size", lambda *_: 256)
    x, w = torch.randn(positions, width), 0.05 * torch.randn(vocab_size, width)
    targets = torch.randint(vocab_size // 50, (positions,))
    targets[::7] = -1
    x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
    expected = F.cross_entropy(x64 @ w64.T, targets, ignore_index=-1)
    expected.backward()
    assert x64.grad is not None and w64.grad is not None

    torch.set_float32_matmul_precision("highest")
    function = compiler(chunked_cross_entropy) if is_compiled else chunked_cross_entropy
    x_, w_ = x.to(where).requires_grad_(), w.to(where).requires_grad_()
    with autocast(where, dtype):
        loss = function(x_, w_, targets.to(where), 64)
    scale = SCALE if dtype == "float16" else 1.0
    (loss * scale).backward()
    assert x_.grad is not None and w_.grad is not None
    assert loss.dtype == torch.float32
    assert error(loss, expected) < TOLERANCES[dtype]
    assert error(x_.grad / scale, x64.grad) < TOLERANCES[dtype]
    assert error(w_.grad / scale, w64.grad) < TOLERANCES[dtype]
    rare = slice(vocab_size // 50, None)  # their gradients are the smallest
    assert error(w_.grad[rare] / scale, w64.grad[rare]) < 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("eot_token", [None, 7])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_loss_and_the_gradients_of_a_model(
    dtype: str, eot_token: int | None, is_compiled: bool, where: torch.device, compiler: Compiler
) -> None:
    """With documents too, which are masked by blocks where the loss is compiled."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, vocab_size=211, block_size=64, pad_vocab=64))
    exact = GPT(model.config).double()
    exact.load_state_dict(model.state_dict())
    idx, targets = torch.randint(211, (2, 4, 64))
    idx[:, [5, 6, 40]] = 7
    expected = TrainingLoss(exact, eot_token)(idx, targets)
    expected.backward()

    torch.set_float32_matmul_precision("highest")
    loss_of: Any = TrainingLoss(model.to(where), eot_token)
    if is_compiled and where.type == "cuda":
        loss_of.mask_of = document_blocks
    loss_of = compiler(loss_of) if is_compiled else loss_of
    with autocast(where, dtype):
        loss = loss_of(idx.to(where), targets.to(where))
    scale = SCALE if dtype == "float16" else 1.0
    (loss * scale).backward()
    assert error(loss, expected) < TOLERANCES[dtype]
    for (name, parameter), reference in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert parameter.grad is not None and reference.grad is not None
        if "c_attn.bias" in name:  # the gradient of a key's bias is zero
            continue
        assert error(parameter.grad / scale, reference.grad) < 2 * TOLERANCES[dtype], name


def test_logits_in_float32(where: torch.device) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=128, vocab_size=1000, block_size=256)).eval()
    idx = torch.randint(1000, (4, 256))
    with torch.no_grad():
        expected = model.double()(idx, idx)[0]
        found = model.float().to(where)(idx.to(where), idx.to(where))[0]
    assert error(found, expected) < 1e-5


@pytest.mark.parametrize("muon", [None, {"lr": 0.02}])
def test_a_skipped_step_changes_nothing(muon: dict[str, float] | None, where: torch.device) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=50, block_size=8)).to(where)
    optimizers = make_optimizers(model, 1e-2, (0.9, 0.95), 0.1, muon=muon)
    scaler = torch.amp.GradScaler(where.type, enabled=False)
    for skip, value in ((False, 1.0), (True, float("nan")), (False, 1.0)):
        before = [p.detach().clone() for p in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        update(optimizers, scaler, 1.0, torch.tensor(skip, device=where))
        pairs = zip(before, model.parameters(), strict=True)
        assert [torch.equal(old, new) for old, new in pairs] == [skip] * len(before)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(("dtype", "lowest", "highest"), [(torch.float32, 0.8, 1.2), (torch.bfloat16, 0.5, 2.5)])
def test_muon_makes_singular_values_close_to_one(
    dtype: torch.dtype, lowest: float, highest: float, where: torch.device
) -> None:
    """Rounding to bfloat16 moves a few of them further."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(3 * 96, 384, device=where))
    parameter.grad = torch.randn_like(parameter)
    Muon([{"params": [("w", parameter)], "stacked": 3}], lr=1.0, dtype=dtype).step()
    values = torch.linalg.svdvals(parameter.detach().cpu().view(3, 96, 384))
    assert lowest < float(values.min()) and float(values.max()) < highest
