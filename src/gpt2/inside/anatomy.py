"""The parts of a network and the shapes of its tensors, found by running it on PyTorch's meta device.

Tensors on that device have shapes and dtypes but no values, so that the largest model takes neither memory nor time.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt2 import accounting
from gpt2.errors import require
from gpt2.model import GPT, GPTConfig

Shape = tuple[int, ...]
MOST_ELEMENTS = 2**59
"""Largest number of elements of a tensor, whose bytes PyTorch can count."""
HEAD = "head"
"""Name of the product with the tied token embedding, which is no module of its own."""


@dataclass(frozen=True)
class Step:
    """A step is one operation of the forward pass."""

    module: str
    """Module that computes it, such as `transformer.h.0.attn`; empty for what `GPT` computes itself."""
    operation: str
    """Name of PyTorch's function."""
    shape: Shape
    """Shape of each result."""
    bytes: int
    """Bytes of each result in float32, or in the dtype of ids and masks."""
    is_view: bool
    """Whether the results are other views of the memory of an input, and take none of their own."""
    count: int = 1
    """Number of equal results, such as the three of a split."""


@dataclass(frozen=True)
class Part:
    """A part is a module with parameters or with FLOPs of its own."""

    name: str
    weights: dict[str, Shape]
    """Shapes of its own parameters by name. Those of `head` belong to `transformer.wte`, and are not repeated."""
    parameters: int
    weight_bytes: int
    """Bytes of the parameters in float32."""
    flops: int
    """FLOPs of a forward pass, as `accounting.forward_flops` counts them."""
    output: Shape
    output_bytes: int
    """Bytes of the output in float32."""


@dataclass(frozen=True)
class Anatomy:
    """Describes a network and one forward pass over (batch_size, block_size) tokens, with the loss."""

    config: GPTConfig
    batch_size: int
    block_size: int
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]

    @property
    def parameters(self) -> int:
        """Return the number of parameters; the tied head counts once."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """Return the FLOPs of the forward pass, with those of biases and LayerNorms."""
        return sum(part.flops for part in self.parts)

    @property
    def matmul_flops(self) -> int:
        """Return the FLOPs of its matrix products alone, which is what PyTorch's FlopCounterMode counts."""
        vectors = sum(shape[0] for part in self.parts for shape in part.weights.values() if len(shape) == 1)
        return self.flops - 2 * self.batch_size * self.block_size * vectors

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "config": asdict(self.config),
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "parameters": self.parameters,
            "components": accounting.components(self.config),
            "weight_bytes": sum(part.weight_bytes for part in self.parts),
            "forward_flops": self.flops,
            "forward_matmul_flops": self.matmul_flops,
            "training_flops": 3 * self.flops,
            "parts": [asdict(part) for part in self.parts],
            "steps": [asdict(step) for step in self.steps],
        }


def anatomy(config: GPTConfig, batch_size: int = 1, block_size: int | None = None) -> Anatomy:
    """Return the parts of `GPT(config)`, and the steps of a forward pass over (batch_size, block_size) tokens.

    block_size: by default the model's. Dropout is off. Attention is computed in separate operations, so that the
    shapes between its inputs and its output can be seen; fused attention computes the same without them. Raises
    UserError for sizes that the model, or PyTorch, cannot take.
    """
    T = config.block_size if block_size is None else block_size
    require(batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1")
    require(1 <= T <= config.block_size, f"block_size is {T}; this model takes 1 to {config.block_size:,} tokens")
    widest = max(config.n_head * T, 4 * config.n_embd, config.vocab_size)
    require(batch_size * T * widest <= MOST_ELEMENTS, "the tensors would be too large; give smaller numbers")
    with torch.device("meta"):
        model = GPT(replace(config, flash=False)).eval()
        idx = torch.zeros(batch_size, T, dtype=torch.long)
    recorder = _Recorder(model)
    with torch.no_grad(), recorder:
        model(idx, idx)
    return Anatomy(config, batch_size, T, tuple(_parts(model, recorder.steps, batch_size, T)), tuple(recorder.steps))


def _parts(model: GPT, steps: list[Step], batch_size: int, block_size: int) -> Iterator[Part]:
    """Yield the parts of a model in the order in which they are used."""
    last = {step.module: step for step in steps}  # in the order of their first steps
    flops = accounting.forward_flops(model.config, batch_size, block_size)
    for name, step in last.items():
        module = None if name == HEAD else model.get_submodule(name)
        own = {} if module is None or name == "" else dict(module.named_parameters(recurse=False))
        if own or name in flops:
            yield Part(
                name,
                {key: tuple(p.shape) for key, p in own.items()},
                sum(p.numel() for p in own.values()),
                sum(p.nbytes for p in own.values()),
                flops.get(name, 0),
                step.shape,
                step.bytes,
            )


class _Recorder(TorchFunctionMode):
    """Records the results of PyTorch's functions, and the module of `model` that calls each, in `steps`."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._inside = [""]
        for name, module in model.named_modules():
            if name:
                module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name))
                module.register_forward_hook(lambda *_: self._leave())

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        results = [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]
        if not results or any(result is given for result in results for given in args):
            return found  # a number, or an input that needed no change
        operation = getattr(func, "__name__", str(func)).strip("_")
        is_head = operation == "linear" and self._inside[-1] == ""
        memory = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor)}
        is_view = results[0].untyped_storage()._cdata in memory
        first = results[0]
        module = HEAD if is_head else self._inside[-1]
        self.steps.append(Step(module, operation, tuple(first.shape), first.nbytes, is_view, len(results)))
        return found


def merged(steps: tuple[Step, ...]) -> list[Step]:
    """Return steps in which repetitions of one or of two steps, as for queries, keys and values, are one or two."""
    found: list[Step] = []
    for step in steps:
        for back in (1, 2):
            if len(found) >= back and replace(found[-back], count=step.count) == step:
                found[-back] = replace(step, count=found[-back].count + step.count)
                break
        else:
            found.append(step)
    return found
