"""A base for optimizers that do not import torch._dynamo."""

import inspect

from torch.optim import Optimizer


class Undecorated(Optimizer):
    """An optimizer whose methods are PyTorch's without the decorators that keep torch.compile away from them.

    These decorators import torch._dynamo, which takes a second, and nothing here compiles an optimizer.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
