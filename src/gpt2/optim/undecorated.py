"""A base for optimizers that do not import torch._dynamo."""

import inspect

from torch.optim import Optimizer


class Undecorated(Optimizer):
    """An optimizer with PyTorch's methods, without the decorators that hide them from torch.compile.

    These decorators import torch._dynamo, which takes a second, and nothing here compiles an optimizer.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
