"""Parameters, FLOPs and utilisation: arithmetic on a configuration, nothing measured."""

from gpt2.model import GPTConfig


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
