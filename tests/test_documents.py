"""Attention inside documents: the dense mask against a count by hand, the mask of blocks against the dense one."""

import itertools

import pytest
import torch

from gpt2.chunked_loss import TrainingLoss
from gpt2.documents import document_blocks, document_mask
from gpt2.model import GPT, GPTConfig
from gpt2.training.budget import masks_by_blocks
from gpt2.training.config import TrainConfig

EOT = 9


def test_a_document_begins_at_an_end_of_text_token() -> None:
    x = torch.tensor([[9, 1, 2, 9, 9, 3], [1, 2, 9, 3, 4, 9], [1, 2, 3, 4, 5, 6]])
    numbers = torch.tensor([[1, 1, 1, 2, 3, 3], [0, 0, 1, 1, 1, 2], [0] * 6])
    mask = document_mask(x, EOT)
    assert mask is not None and mask.shape == (3, 1, 6, 6)
    for b, i, j in itertools.product(range(3), range(6), range(6)):
        assert bool(mask[b, 0, i, j]) == (j <= i and bool(numbers[b, i] == numbers[b, j]))
    assert document_mask(x, None) is None


@torch.no_grad()  # on a CPU, FlexAttention has no backward pass; tests/gpu compares gradients
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("block_size", [16, 300])  # less than a block of FlexAttention, and no multiple of it
def test_blocks_give_the_loss_of_the_dense_mask(block_size: int) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=block_size, vocab_size=EOT + 1, n_layer=2, n_head=2, n_embd=32)).double()
    for p in model.parameters():
        p.data.mul_(5)  # as initialized, hardly anything depends on attention
    idx = torch.randint(EOT, (2, block_size + 1))
    idx[:, [3, 4, 11]] = EOT
    x, y = idx[:, :-1], idx[:, 1:]
    causal, dense, blocks = TrainingLoss(model), TrainingLoss(model, EOT), TrainingLoss(model, EOT)
    blocks.mask_of = document_blocks
    expected = dense(x, y).item()
    assert abs(causal(x, y).item() - expected) > 1e-3
    assert blocks(x, y).item() == pytest.approx(expected, abs=1e-12)


def test_documents_are_masked_by_blocks_only_where_that_is_compiled_for_a_gpu() -> None:
    config = {"document_mask": True, "compile": True}
    assert masks_by_blocks(TrainConfig(**config), "cuda")
    assert not masks_by_blocks(TrainConfig(**config), "cpu")
    for name, other in (("compile", False), ("document_mask", False), ("flash", False), ("dropout", 0.1)):
        assert not masks_by_blocks(TrainConfig(**config | {name: other}), "cuda")
