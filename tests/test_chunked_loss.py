import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from gpt2 import chunked_loss as module
from gpt2.chunked_loss import chunk_size, chunked_cross_entropy

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


def test_where_every_target_is_ignored_loss_and_gradients_are_0() -> None:
    """A micro-batch without answers adds nothing to the step."""
    x, w, _ = inputs()
    loss = chunked_cross_entropy(x, w, torch.full((N,), -1))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()
    assert not w.grad.any()


def test_float16_holds_the_gradient_of_a_frequent_token() -> None:
    """Its sum over many places is more than float16 can hold."""
    x = torch.full((4096, C), 20.0).requires_grad_()
    w = torch.zeros(64, C).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = chunked_cross_entropy(x, w, torch.zeros(4096, dtype=torch.int64))
    loss.backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad[0], torch.full((C,), -20 * 63 / 64), rtol=1e-3, atol=0)


@pytest.mark.parametrize("probability", [2e-5, 1e-8])
def test_float16_keeps_the_gradient_of_tokens_that_are_absent(probability: float) -> None:
    """Their probabilities are near the smallest number of float16, or below."""
    x = torch.randn(4096, C, generator=torch.Generator().manual_seed(0)).abs_().requires_grad_()
    w = torch.zeros(64, C)
    x.data[:, 0], w[0, 0] = 1.0, -math.log(probability)
    w.requires_grad_()
    targets = torch.zeros(4096, dtype=torch.int64)
    with torch.autocast("cpu", torch.float16):
        loss = chunked_cross_entropy(x, w, targets)
    loss.backward()
    exact = w.detach().double().requires_grad_()
    F.cross_entropy(x.detach().double() @ exact.T, targets).backward()
    assert w.grad is not None and exact.grad is not None
    torch.testing.assert_close(w.grad[1:].double(), exact.grad[1:], rtol=0.01, atol=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("positions", [1, 256, 1000, 1021, 8192, 16384, 65536, 131072])
def test_chunks_are_equal(positions: int, device: str) -> None:
    size = chunk_size(positions, 50304, device)
    count, missing = -(-positions // size), -positions % size  # in the last chunk
    assert count <= module.MAX_CHUNKS
    assert size * 50304 <= module.MAX_CHUNK_LOGITS[device] or count == module.MAX_CHUNKS
    assert missing < (1 if positions & (positions - 1) == 0 else count)


def compiled_graph(x: Tensor, w: Tensor, targets: Tensor) -> fx.Graph:
    """The operations of the compiled forward pass."""
    graphs: list[fx.Graph] = []

    def keep(module: fx.GraphModule, inputs: Any) -> Any:
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=keep, bw_compiler=lambda module, inputs: module.forward)
    torch.compile(chunked_cross_entropy, backend=backend, fullgraph=True)(x, w, targets, 16)
    return graphs[0]


def test_compiled_code_frees_the_logits_of_a_chunk_before_the_next(in_parts) -> None:
    """All that reads a tensor as large as the logits is needed for the product that computes the next logits."""
    x, w, targets = inputs()
    graph = compiled_graph(x, w, targets)
    needed: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        needed[node] = {node}.union(*(needed[n] for n in node.all_input_nodes))
    large = [n for n in graph.nodes if isinstance(n.meta.get("val"), Tensor) and n.meta["val"].numel() in (240, 144)]
    logits = [n for n in large if n.target is torch.ops.aten.mm.default]
    assert len(logits) == 5
    for product in logits[1:]:
        before = [n for n in large if product not in needed[n]]
        assert before
        for reader in (user for n in before for user in n.users):
            assert reader in large or reader in needed[product]
