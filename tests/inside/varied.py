"""A tiny model whose layers all matter."""

import torch

from gpt2.model import GPT, GPTConfig

CONFIG = GPTConfig(block_size=24, vocab_size=53, n_layer=3, n_head=2, n_embd=16)


def varied(config: GPTConfig = CONFIG) -> GPT:
    """A model in training mode with large weights and biases, because an initialized one predicts hardly anything."""
    torch.manual_seed(1)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5).add_(torch.randn_like(parameter) * 0.1)
    return model.train()
