"""A tiny model and a text for it."""

import pytest
import torch
from torch import Tensor
from varied import varied

from gpt2.model import GPT


@pytest.fixture
def model() -> GPT:
    return varied()


@pytest.fixture
def text() -> Tensor:
    return torch.randint(53, (24,), generator=torch.Generator().manual_seed(2))
