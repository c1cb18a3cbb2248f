"""Computes parameters, FLOPs, memory and communication from a configuration, without measuring anything."""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal

from gpt2.chunked_loss import chunk_size
from gpt2.model import GPTConfig

BLOCK = {
    "ln_1": (1,),
    "attn.c_attn": (3, 1),
    "attn.c_proj": (1, 1),
    "ln_2": (1,),
    "mlp.c_fc": (4, 1),
    "mlp.c_proj": (1, 4),
}
"""The modules of a block and the shapes of their weights, in units of n_embd."""
PROCESS_BYTES, HALF_BYTES, COMPILER_BYTES = 285_000_000, 30_000_000, 175_000_000
"""Bytes of a process on a CPU besides its tensors, and what 16-bit products and torch.compile add to them."""
EVALUATED_POSITIONS = 1024
"""Number of positions whose logits an evaluation computes at a time (`evaluation/scoring.py`)."""
GAPS, GAPS_COMPILED, GAPS_COMPILED_HALF = 3.6, 3.3, 2.4
"""Measured size of the gaps between tensors, relative to the logits of an evaluation in float32."""
GAPS_OF_ONE_CHUNK = 1.2
"""The same where an evaluation computes all logits of a batch at a time."""


def parameter_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every parameter of `GPT(config)`, in its order, without building the model."""
    C = config.n_embd

    def module(name: str, units: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the parameters of the module `name` whose weight has a shape of `units` times n_embd."""
        shape = tuple(n * C for n in units)
        yield f"transformer.{name}.weight", shape
        if config.bias:
            yield f"transformer.{name}.bias", shape[:1]

    yield "transformer.wte.weight", (config.vocab_size, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for layer in range(config.n_layer):
        for name, units in BLOCK.items():
            yield from module(f"h.{layer}.{name}", units)
    yield from module("ln_f", (1,))


def num_params(config: GPTConfig) -> int:
    """Return the number of parameters of the model. The tied head is counted once."""
    C, L = config.n_embd, config.n_layer
    embeddings = (config.vocab_size + config.block_size) * C
    if config.bias:
        return embeddings + L * (12 * C * C + 13 * C) + 2 * C
    return embeddings + L * (12 * C * C + 2 * C) + C


def components(config: GPTConfig) -> dict[str, int]:
    """Return the number of parameters of the model by kind of component. The tied head is the token embedding."""
    kinds = {
        "token embedding": ".wte.",
        "position embedding": ".wpe.",
        "attention": ".attn.",
        "MLP": ".mlp.",
        "LayerNorm": ".ln_",
    }
    shapes = list(parameter_shapes(config))
    return {kind: sum(math.prod(shape) for name, shape in shapes if part in name) for kind, part in kinds.items()}


def flops_per_token(config: GPTConfig) -> int:
    """Return the FLOPs per token, forward and backward, at full context: 6N + 12·n_layer·n_embd·block_size.

    This is PaLM's accounting (Chowdhery et al. 2022, appendix B) as in nanoGPT: N omits the position embeddings, and
    attention counts the full square although half of it is masked.
    """
    n = num_params(config) - config.block_size * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * config.block_size


def forward_flops(config: GPTConfig, batch_size: int, positions: int) -> dict[str, int]:
    """Return the FLOPs of every module of `GPT(config)` in a forward pass over (batch_size, positions) tokens.

    The names are those of the modules; `head` is the product with the token embedding, whose lookup takes none. The
    accounting is that of `flops_per_token`: a parameter takes one multiplication and one addition per token, and
    attention counts the full square, so that three times the sum is the FLOPs of a training step.
    """
    tokens = batch_size * positions
    found: dict[str, int] = {}
    for name, shape in parameter_shapes(config):
        module = name.rpartition(".")[0]
        if module == "transformer.wpe":
            continue
        if module.endswith(".attn.c_proj"):  # the products of attention come before it
            found[module.removesuffix(".c_proj")] = 4 * tokens * positions * config.n_embd
        module = "head" if module == "transformer.wte" else module
        found[module] = found.get(module, 0) + 2 * tokens * math.prod(shape)
    return found


def mfu(config: GPTConfig, tokens_per_second: float, peak_flops: float) -> float:
    """Return the model FLOPs utilisation: the share of `peak_flops` (FLOP/s) that the model's arithmetic uses.

    The result is at most 1, because a higher rate only shows that the peak was measured too low.
    """
    return min(1.0, flops_per_token(config) * tokens_per_second / peak_flops)


@dataclass(frozen=True)
class Sharing:
    """Describes how processes share a model."""

    processes: int = 1
    """Number of processes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Full copies of the parameters in each process, or shards of them."""
    zero_stage: Literal[0, 1] = 0
    """With 1 and ddp, each process keeps a shard of the optimizer state."""


@dataclass(frozen=True)
class Memory:
    """Holds the bytes that the process with the largest share needs."""

    parameters: int
    """Bytes of the parameters that the process keeps."""
    gradients: int
    """Bytes of their gradients, as far as they exist together with the activations."""
    optimizer: int
    """Bytes of the optimizer state."""
    gathered: int
    """Bytes of the full tensors that fully_shard gathers for a computation."""
    activations: int
    """Bytes that the forward pass keeps for the backward pass."""
    logits: int
    """Bytes of the logits of a chunk, of what is computed from them, and of the gradient of the head."""
    process: int = 0
    """Bytes of Python, PyTorch and compiled code in the memory of a CPU; 0 for a GPU."""
    allocator: int = 0
    """Bytes of freed memory between tensors, where the next ones do not fit, on a CPU; 0 for a GPU."""

    @property
    def total(self) -> int:
        """Return the sum, as if everything had its largest size at the same time."""
        return sum(astuple(self))


def memory(
    config: GPTConfig,
    sharing: Sharing,
    batch_size: int,
    *,
    half: bool,
    optimizer: Literal["adamw", "muon"] = "adamw",
    compiled: bool = False,
    recomputes: bool = True,
    activation_checkpointing: bool = False,
    accumulates: bool = True,
    device: str = "cuda",
) -> Memory:
    """Return the memory of a process that trains with micro-batches of (batch_size, block_size), without dropout.

    Weights, gradients and AdamW's two state tensors are float32: 16 bytes per parameter in one process. Muon keeps
    one state tensor for each matrix of a block; its temporary memory is not counted, because the activations are free
    then. With `half`, matrix products are in bfloat16 or float16, and their inputs are kept in that dtype.
    Activations are counted as in Korthikanti et al. 2022, section 4.1, for attention that keeps no scores.
    recomputes: whether compiled code computes the outputs of GELU and LayerNorm again in the backward pass.
    accumulates: whether gradients exist during the forward pass, as with several micro-batches or processes. In a
    single one they take the place of the activations.
    """
    shapes = dict(parameter_shapes(config))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    in_blocks = sum(n for name, n in sizes.items() if name.startswith("transformer.h."))
    gathered = 0
    if sharing.processes > 1 and sharing.parallel == "fsdp":
        sizes = {name: math.ceil(s[0] / sharing.processes) * math.prod(s[1:]) for name, s in shapes.items()}
        block = in_blocks // config.n_layer
        rest = total - in_blocks
        gathered = 4 * (2 * rest + 3 * block)  # weights of two blocks, gradients of one, and both of the rest
    local = sum(sizes.values())
    muon = {name for name, s in shapes.items() if optimizer == "muon" and ".h." in name and len(s) == 2}
    share = sharing.processes if sharing.parallel == "ddp" and sharing.zero_stage else 1
    momentum = 4 * largest_zero_share([n for name, n in sizes.items() if name in muon], share)
    adamw = 8 * largest_zero_share([n for name, n in sizes.items() if name not in muon], share)
    C, L, BT = config.n_embd, config.n_layer, batch_size * config.block_size
    item = 2 if half else 4
    inputs = 8 if compiled and recomputes else 14
    block_input, block_all = 4 * BT * C, (8 + inputs * item) * BT * C + 4 * BT * config.n_head
    activations = L * block_input + block_all if activation_checkpointing else L * block_all
    activations += (8 + item) * BT * C  # the embeddings, and the last LayerNorm's input and output
    if half and not compiled:  # autocast keeps the matrices that it has converted
        activations += 2 * 12 * L * C * C
    positions = chunk_size(BT, config.vocab_size, device)
    logits = _bytes_per_logit(half, compiled) * positions * config.vocab_size
    logits += (4 + item) * config.vocab_size * C  # the head's gradient, and its converted weights
    process, allocator = _cpu_overhead(config, BT, half, compiled) if device == "cpu" else (0, 0)
    gradients = 4 * local if accumulates else max(0, 4 * local - activations - logits)
    return Memory(4 * local, gradients, momentum + adamw, gathered, activations, logits, process, allocator)


def _bytes_per_logit(half: bool, compiled: bool) -> int:
    """Return the bytes for each logit of a chunk while the largest two tensors of this size exist.

    Uncompiled code holds the logits and log-probabilities in float32. Compiled code holds the logits and their
    gradient in the dtype of products, and computes everything between in one kernel.
    """
    return 4 if compiled and half else 8


def _cpu_overhead(config: GPTConfig, positions: int, half: bool, compiled: bool) -> tuple[int, int]:
    """Return the bytes of a process on a CPU besides its tensors: of libraries, and of gaps between tensors.

    The constants are measured (`benchmarks/plan_check.py`, PyTorch 2.13, glibc). Memory that training has freed has
    gaps too small for the logits of an evaluation.
    """
    process = PROCESS_BYTES + (HALF_BYTES if half else 0) + (COMPILER_BYTES if compiled else 0)
    gaps = GAPS if not compiled else GAPS_COMPILED_HALF if half else GAPS_COMPILED
    if positions <= EVALUATED_POSITIONS:
        gaps = min(gaps, GAPS_OF_ONE_CHUNK)
    return process, int(gaps * 4 * min(positions, EVALUATED_POSITIONS) * config.vocab_size)


def largest_zero_share(sizes: list[int], processes: int) -> int:
    """Return the number of parameters whose optimizer state the process with the most of them keeps.

    ZeRO assigns the parameters, of the given `sizes`, largest first, each to the process with the fewest so far.
    """
    shares = [0] * processes
    for size in sorted(sizes, reverse=True):
        shares[shares.index(min(shares))] += size
    return max(shares)


def communication(config: GPTConfig, sharing: Sharing, micro_batches: int) -> float:
    """Return the bytes that a process sends in an optimizer step of `micro_batches` in each process.

    Ring algorithms are assumed. ddp reduces gradients once (Patarasuk & Yuan 2009). ZeRO then sends each parameter
    from its owner to all processes. fsdp gathers the parameters twice per micro-batch and reduces the gradients once
    (Rajbhandari et al. 2020, section 7).
    """
    once = 4 * num_params(config) * (sharing.processes - 1) / sharing.processes
    if sharing.parallel == "fsdp":
        return (2 * micro_batches + 1) * once
    return (2 + sharing.zero_stage) * once
