"""Small models with varied predictions, and decoding of one text without any cache, as the reference."""

from collections.abc import Sequence

import torch

from gpt2.model import GPT, GPTConfig


def random_model(vocab_size: int = 257, block_size: int = 16, **changes) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=2, n_head=2, n_embd=32, **changes)
    model = GPT(config).eval()
    for parameter in model.parameters():
        parameter.data *= 5  # so that the likeliest token is not always the last one again
    return model


@torch.no_grad()
def greedy(model: GPT, prompt: Sequence[int], n: int, reanchor: bool = False) -> list[int]:
    """nanoGPT's computation: the complete window for every token, which moves by one or is halved when it is full."""
    block_size = model.config.block_size
    tokens, first = list(prompt), max(0, len(prompt) - block_size)
    for _ in range(n):
        if len(tokens) - first > block_size:
            first = len(tokens) - (block_size // 2 if reanchor else block_size)
        logits, _ = model(torch.tensor([tokens[first:]]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]
