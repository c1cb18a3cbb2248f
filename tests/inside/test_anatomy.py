"""The parts of a network and the shapes of its tensors.

They are compared with published counts, with PyTorch's own counter of FLOPs and with a model that has values.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2 import accounting
from gpt2.errors import UserError
from gpt2.inside.anatomy import Anatomy, anatomy, merged
from gpt2.model import GPT, GPTConfig

SMALL = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=12)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_parts_have_all_parameters_of_openais_models(size: str, parameters: int) -> None:
    config = GPTConfig.preset(size)
    found = anatomy(config, block_size=2)
    assert found.parameters == parameters == sum(accounting.components(config).values())
    assert sum(part.weight_bytes for part in found.parts) == 4 * parameters


def test_components_of_the_smallest_model() -> None:
    C, L = 768, 12
    assert accounting.components(GPTConfig()) == {
        "token embedding": 50257 * C,
        "position embedding": 1024 * C,
        "attention": L * (3 * C * C + 3 * C + C * C + C),
        "MLP": L * (4 * C * C + 4 * C + 4 * C * C + C),
        "LayerNorm": (2 * L + 1) * 2 * C,
    }


@pytest.mark.parametrize("config", [GPTConfig(), SMALL, replace(SMALL, bias=False, n_layer=1)])
def test_flops_are_those_of_the_accounting(config: GPTConfig) -> None:
    found = anatomy(config, batch_size=2)
    assert 3 * found.flops == 2 * config.block_size * accounting.flops_per_token(config)
    half = config.block_size // 2
    assert 3 * anatomy(config, 5, half).flops == 5 * half * accounting.flops_per_token(
        replace(config, block_size=half)
    )


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("config", [SMALL, GPTConfig(n_layer=3)])
def test_flops_of_every_part_are_those_that_pytorch_counts(config: GPTConfig, flash: bool) -> None:
    """PyTorch counts only matrix products, and not the biases and LayerNorms."""
    with torch.device("meta"):
        model = GPT(replace(config, flash=flash)).eval()
        idx = torch.zeros(3, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(idx, idx)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    found = anatomy(config, batch_size=3)
    expected = {}
    for part in found.parts:
        vectors = sum(shape[0] for shape in part.weights.values() if len(shape) == 1)
        expected[part.name] = part.flops - 2 * 3 * config.block_size * vectors
    assert sum(expected.values()) == counter.get_total_flops()
    for name, flops in expected.items():
        inside = sum(other for key, other in expected.items() if key.startswith(f"{name}."))
        if name != "head":
            assert by_module.get(f"GPT.{name}", 0) == flops + inside, name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_totals_are_those_that_pytorch_counts(name: str, bias: bool) -> None:
    config = GPTConfig.preset(name, bias=bias)
    with torch.device("meta"):
        model = GPT(config).eval()
        idx = torch.zeros(1, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(idx, idx)
    figures = anatomy(config).figures()
    assert figures["forward_matmul_flops"] == counter.get_total_flops()
    assert figures["parameters"] == sum(p.numel() for _, p in model.named_parameters())


def outputs_of(model: GPT, idx: torch.Tensor) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and bytes of the output of every module of a model with values."""
    made: dict[str, Any] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, given, out, name=name: made.__setitem__(name, out))
    made["head"], _ = model(idx, idx)
    return {name: (tuple(t.shape), t.nbytes) for name, t in made.items() if isinstance(t, torch.Tensor)}


def test_shapes_are_those_of_a_model_with_values() -> None:
    found = anatomy(SMALL, 3, 5)
    real = outputs_of(GPT(SMALL).eval(), torch.randint(SMALL.vocab_size, (3, 5)))
    last = {step.module: (step.shape, step.bytes) for step in found.steps}
    for name, output in real.items():  # attn and mlp end with their c_proj
        assert last[f"{name}.c_proj" if name.endswith((".attn", ".mlp")) else name] == output, name
    parts = {part.name: (part.output, part.output_bytes) for part in found.parts}
    assert {"transformer.h.1.mlp.c_fc", "transformer.wpe", "head"} <= set(parts)
    assert parts == {name: last[name] for name in parts}


def steps_of(found: Anatomy, module: str) -> list[tuple[str, tuple[int, ...], int, bool]]:
    return [(s.operation, s.shape, s.count, s.is_view) for s in merged(found.steps) if s.module == module]


def test_the_steps_of_attention_are_those_of_its_definition() -> None:
    assert steps_of(anatomy(SMALL, 3, 5), "transformer.h.1.attn") == [
        ("split", (3, 5, 12), 3, True),
        ("view", (3, 5, 2, 6), 3, True),
        ("transpose", (3, 2, 5, 6), 3, True),
        ("ones", (5, 5), 1, False),
        ("tril", (5, 5), 1, False),
        ("transpose", (3, 2, 6, 5), 1, True),
        ("matmul", (3, 2, 5, 5), 1, False),
        ("div", (3, 2, 5, 5), 1, False),
        ("invert", (5, 5), 1, False),
        ("masked_fill", (3, 2, 5, 5), 1, False),
        ("softmax", (3, 2, 5, 5), 1, False),
        ("matmul", (3, 2, 5, 6), 1, False),
        ("transpose", (3, 5, 2, 6), 1, True),
        ("reshape", (3, 5, 12), 1, False),
    ]


def test_the_journey_ends_with_one_number() -> None:
    found = anatomy(SMALL, 3, 5)
    assert [(s.operation, s.shape) for s in found.steps[-4:]] == [
        ("linear", (3, 5, 11)),
        ("flatten", (15, 11)),
        ("flatten", (15,)),
        ("cross_entropy", ()),
    ]
    assert steps_of(found, "transformer.h.0") == [("add", (3, 5, 12), 1, False)] * 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 8)])
def test_the_smallest_and_the_largest_batch(shape: tuple[int, int]) -> None:
    one_of_all = GPTConfig(block_size=8, vocab_size=3, n_layer=1, n_head=1, n_embd=1)
    assert anatomy(one_of_all, *shape).steps[-1].shape == ()


@pytest.mark.parametrize(
    ("shape", "message"),
    [((0, 1), "batch_size is 0"), ((1, 9), "takes 1 to 8"), ((1, 0), "takes 1"), ((10**17, 8), "give smaller")],
)
def test_sizes_that_are_impossible(shape: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        anatomy(SMALL, *shape)
