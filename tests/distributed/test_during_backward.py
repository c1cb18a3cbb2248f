"""Gradients begin to travel while the backward pass runs, and the time in which they still do is booked as reduce."""

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gpt2.chunked_loss import TrainingLoss
from gpt2.distributed import gradients
from gpt2.distributed.gradients import DataParallel, FixedOrder
from gpt2.distributed.world import World
from gpt2.model import GPT, GPTConfig
from gpt2.training.compile import compile_pieces

CONFIG = GPTConfig(block_size=4, vocab_size=11, n_layer=3, n_head=2, n_embd=8)
IDX = torch.tensor([[1, 2, 3, 4]])


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the sums that begin and those that are waited for, of a single process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    events: list[str] = []
    original = dist.all_reduce

    class Sum:
        def __init__(self, tensor: Tensor) -> None:
            events.append("sum begins")
            self.work = original(tensor, async_op=True)

        def wait(self) -> None:
            events.append("sum ends")
            self.work.wait()

    monkeypatch.setattr(gradients.dist, "all_reduce", lambda tensor, async_op: Sum(tensor))
    yield events
    dist.destroy_process_group()


def report_backward(report: Callable[[Tensor], None], block: nn.Module, inputs: object, output: Tensor) -> None:
    """Call `report` when the gradient of an output is known, which is when the backward pass of its block begins."""
    output.register_hook(report)


def compiled(loss_of: TrainingLoss) -> None:
    compile_pieces(loss_of)


def plain(loss_of: TrainingLoss) -> None:
    pass


@pytest.mark.parametrize("prepare", [plain, compiled])
def test_sums_begin_before_the_first_block_computes_its_gradients(
    prepare: Callable[[TrainingLoss], None], events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.manual_seed(0)
    loss_of = TrainingLoss(GPT(CONFIG))
    (2 * loss_of(IDX, IDX)).backward()
    expected = {name: p.grad for name, p in loss_of.named_parameters()}
    loss_of.zero_grad(set_to_none=True)
    prepare(loss_of)
    sync = DataParallel(loss_of, bucket_bytes=1)
    for number, name in ((0, "first block"), (2, "last block")):
        report = functools.partial(report_backward, lambda _, name=name: events.append(name))
        loss_of.model.transformer.h[number].register_forward_hook(report)
    with sync.micro_batch(is_last=False):
        sync.loss_of(IDX, IDX).backward()
    assert events == ["last block", "first block"]
    events.clear()
    with sync.micro_batch(is_last=True):
        sync.loss_of(IDX, IDX).backward()
    before = events[events.index("last block") : events.index("first block")]
    assert before.count("sum begins") >= 12  # of each parameter of the last block
    assert "sum ends" not in events  # which would be in the time of the backward pass
    sync.finish()
    assert events.count("sum ends") == events.count("sum begins") == len(expected)
    for name, parameter in loss_of.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_an_evaluation_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *inputs: calls.append(f) or f(*inputs))
    loss_of = TrainingLoss(GPT(CONFIG))
    undo = compile_pieces(loss_of)
    with torch.no_grad():
        loss_of(IDX, IDX)
    assert not calls
    loss_of(IDX, IDX)
    assert len(calls) == CONFIG.n_layer + 1
    undo()
    loss_of(IDX, IDX)
    assert len(calls) == CONFIG.n_layer + 1


def test_the_tree_exchanges_one_message_for_each_level(monkeypatch: pytest.MonkeyPatch) -> None:
    loss_of = TrainingLoss(GPT(CONFIG))
    sync = FixedOrder(loss_of, World(rank=1, size=4), micro_batches=4)
    sent: list[tuple[int, int]] = []

    def exchanged(flat: Tensor, partner: int) -> Tensor:
        sent.append((flat.numel(), partner))
        return flat.clone()

    monkeypatch.setattr(sync, "_exchanged", exchanged)
    with sync.micro_batch(is_last=True):
        loss_of(IDX, IDX).backward()
        expected = [4 * p.grad for p in loss_of.parameters() if p.grad is not None]
    sync.finish()
    size = sum(p.numel() for p in loss_of.parameters())
    assert sent == [(size, 0), (size, 3)]
    assert all(
        torch.equal(p.grad, e) for p, e in zip(loss_of.parameters(), expected, strict=True) if p.grad is not None
    )
