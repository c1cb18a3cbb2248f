"""Parameters, FLOPs and utilisation: arithmetic on a configuration, nothing measured."""

from collections.abc import Iterator

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
    """Model FLOPs utilisation: the share of `peak_flops` (FLOP/s) that the model's own arithmetic uses."""
    return flops_per_token(config) * tokens_per_second / peak_flops
