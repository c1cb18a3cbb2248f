"""Parameters, FLOPs, memory and communication: arithmetic on a configuration, nothing measured."""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal

from gpt2.chunked_loss import chunk_size
from gpt2.model import GPTConfig

# The parts of a block and the shape of their weights, in units of n_embd.
BLOCK = {
    "ln_1": (1,),
    "attn.c_attn": (3, 1),
    "attn.c_proj": (1, 1),
    "ln_2": (1,),
    "mlp.c_fc": (4, 1),
    "mlp.c_proj": (1, 4),
}


def parameter_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter of `GPT(config)` in its order, one by one and without building it."""
    C = config.n_embd

    def part(name: str, units: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        shape = tuple(n * C for n in units)
        yield f"transformer.{name}.weight", shape
        if config.bias:
            yield f"transformer.{name}.bias", shape[:1]

    yield "transformer.wte.weight", (config.vocab_size, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for layer in range(config.n_layer):
        for name, units in BLOCK.items():
            yield from part(f"h.{layer}.{name}", units)
    yield from part("ln_f", (1,))


def num_params(config: GPTConfig) -> int:
    """Parameters of the model, the tied head counted once."""
    C, L = config.n_embd, config.n_layer
    embeddings = (config.vocab_size + config.block_size) * C
    if config.bias:
        return embeddings + L * (12 * C * C + 13 * C) + 2 * C
    return embeddings + L * (12 * C * C + 2 * C) + C


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward FLOPs a token at full context: 6N + 12·n_layer·n_embd·block_size.

    PaLM's accounting (Chowdhery et al. 2022, appendix B) as nanoGPT counts it: N leaves out the position
    embeddings, and attention counts the whole square although half of it is masked.
    """
    n = num_params(config) - config.block_size * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * config.block_size


def mfu(config: GPTConfig, tokens_per_second: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: the share of `peak_flops` (FLOP/s) that the model's own arithmetic uses.

    At most 1: a rate that was reached is one that the device has, so that its peak was then measured too low.
    """
    return min(1.0, flops_per_token(config) * tokens_per_second / peak_flops)


@dataclass(frozen=True)
class Sharing:
    """Describes how processes share a model."""

    processes: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    zero_stage: Literal[0, 1] = 0


@dataclass(frozen=True)
class Memory:
    """Bytes that the process with the largest share needs."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    """What fully_shard puts together to compute with."""
    activations: int
    """Kept from forward for backward."""
    logits: int
    """With what is computed from them at a time, and the gradient of the head."""

    @property
    def total(self) -> int:
        """All of it, as if all of it had its largest size at once."""
        return sum(astuple(self))


def memory(
    config: GPTConfig,
    sharing: Sharing,
    batch_size: int,
    *,
    half: bool,
    optimizer: Literal["adamw", "muon"] = "adamw",
    compiled: bool = False,
    activation_checkpointing: bool = False,
    device: str = "cuda",
) -> Memory:
    """Memory of a process that trains with micro-batches of (batch_size, block_size), without dropout.

    Weights, gradients and AdamW's two moments are float32: 16 bytes a parameter before they are shared. Of a block's
    matrix Muon keeps one; what it computes with is not counted, the activations being gone by then. `half`: matrix
    products in bfloat16 or float16, whose inputs are kept so. As Korthikanti et al. 2022 count, section 4.1, for
    attention that keeps no scores.
    """
    shapes = dict(parameter_shapes(config))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    all_of, blocks = sum(sizes.values()), sum(n for name, n in sizes.items() if name.startswith("transformer.h."))
    gathered = 0
    if sharing.processes > 1 and sharing.parallel == "fsdp":
        sizes = {name: math.ceil(s[0] / sharing.processes) * math.prod(s[1:]) for name, s in shapes.items()}
        block = blocks // config.n_layer
        rest = all_of - blocks
        gathered = 4 * (2 * rest + 3 * block)  # weights of two blocks, gradients of one; both of what is in none
    here = sum(sizes.values())
    muons = {name for name, s in shapes.items() if optimizer == "muon" and ".h." in name and len(s) == 2}
    share = sharing.processes if sharing.parallel == "ddp" and sharing.zero_stage else 1
    momentum = 4 * largest_zero_share([n for name, n in sizes.items() if name in muons], share)
    moments = 8 * largest_zero_share([n for name, n in sizes.items() if name not in muons], share)
    C, L, BT = config.n_embd, config.n_layer, batch_size * config.block_size
    item = 2 if half else 4
    inputs = 8 if compiled else 14  # compiled, what GELU and the LayerNorms gave is computed again
    block_input, block_all = 4 * BT * C, (8 + inputs * item) * BT * C + 4 * BT * config.n_head
    activations = L * block_input + block_all if activation_checkpointing else L * block_all
    activations += (8 + item) * BT * C  # the embeddings, and the last LayerNorm's input and output
    if half and not compiled:  # autocast keeps the matrices it has converted
        activations += 2 * 12 * L * C * C
    positions = chunk_size(BT, config.vocab_size, device)
    logits = (4 + 2 * item if half else 8) * positions * config.vocab_size  # themselves, probabilities, gradient
    logits += (4 + item) * config.vocab_size * C  # the head's gradient, and its weights as they are multiplied with
    return Memory(4 * here, 4 * here, momentum + moments, gathered, activations, logits)


def largest_zero_share(sizes: list[int], processes: int) -> int:
    """Parameters whose state the fullest process keeps: each goes, largest first, to the one that has least."""
    shares = [0] * processes
    for size in sorted(sizes, reverse=True):
        shares[shares.index(min(shares))] += size
    return max(shares)


def communication(config: GPTConfig, sharing: Sharing, micro_batches: int) -> float:
    """Bytes that a process sends in an update of so many micro-batches of its own, by ring algorithms.

    ddp reduces gradients once (Patarasuk & Yuan 2009); ZeRO then sends each parameter from its owner to all; fsdp
    gathers the parameters twice a micro-batch and reduces the gradients once (Rajbhandari et al. 2020, section 7).
    """
    once = 4 * num_params(config) * (sharing.processes - 1) / sharing.processes
    if sharing.parallel == "fsdp":
        return (2 * micro_batches + 1) * once
    return (2 + sharing.zero_stage) * once
