import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2 import chunked_loss as module
from gpt2.chunked_loss import chunked_cross_entropy

N, V, C = 23, 37, 8


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, w = (torch.randn(n, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for n in (N, V))
    return x, w, torch.randint(V, (N,), generator=generator)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of logits at a time: the last part has three."""
    monkeypatch.setitem(module.MAX_CHUNK_LOGITS, "cpu", 5 * 48)


@pytest.mark.parametrize("pad_vocab", [1, 16, 64])
@pytest.mark.parametrize("ignored", [[], [0, 7, 22], [5, 6, 7, 8, 9]])
def test_loss_and_gradients_are_those_of_all_logits_at_once(in_parts, pad_vocab: int, ignored: list[int]) -> None:
    x, w, targets = inputs()
    targets[ignored] = -1
    found = chunked_cross_entropy(x, w, targets, pad_vocab)
    gradients = torch.autograd.grad(3 * found, (x, w))
    expected = F.cross_entropy(x @ w.T, targets, ignore_index=-1)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    for mine, theirs in zip(gradients, torch.autograd.grad(3 * expected, (x, w)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-16)


def test_no_more_logits_exist_than_allowed(in_parts, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    log_softmax = F.log_softmax
    monkeypatch.setattr(F, "log_softmax", lambda x, **named: seen.append(x.shape) or log_softmax(x, **named))
    x, w, targets = inputs()
    chunked_cross_entropy(x, w, targets, 16).backward()
    assert seen == [(5, 48)] * 4 + [(3, 48)]


def test_a_batch_has_at_most_sixteen_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.MAX_CHUNK_LOGITS, "cpu", 1)
    seen = []
    log_softmax = F.log_softmax
    monkeypatch.setattr(F, "log_softmax", lambda x, **named: seen.append(len(x)) or log_softmax(x, **named))
    x, w, targets = inputs()
    chunked_cross_entropy(x, w, targets, 16).backward()
    assert seen == [2] * 11 + [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_as_near_as_its_format(in_parts, dtype: torch.dtype) -> None:
    x, w, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype):
        found = chunked_cross_entropy(x, w, targets, 16)
    found.backward()
    assert found.dtype == x.grad.dtype == w.grad.dtype == torch.float32
    exact, v, _ = inputs()
    expected = F.cross_entropy(exact @ v.T, targets)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=5e-3)
    for mine, theirs in ((x.grad, exact.grad), (w.grad, v.grad)):
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()


def test_where_every_target_is_ignored_the_loss_is_no_number() -> None:
    x, w, _ = inputs()
    assert chunked_cross_entropy(x, w, torch.full((N,), -1)).isnan()


def test_float16_holds_the_gradient_of_a_frequent_token() -> None:
    """Its sum over many places is more than float16 can hold."""
    x = torch.full((4096, C), 20.0).requires_grad_()
    w = torch.zeros(64, C).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = chunked_cross_entropy(x, w, torch.zeros(4096, dtype=torch.int64))
    loss.backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad[0], torch.full((C,), -20 * 63 / 64), rtol=1e-3, atol=0)
