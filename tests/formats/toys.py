"""Small models and tokenizers to put into files."""

import torch

from gpt2.formats.open import build, open_model
from gpt2.formats.source import Source, StoredTensor
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import CharTokenizer, Tokenizer

LETTERS = "\n !abcdefghijklmnopqrstuvwxyzäß日"


def characters(count: int) -> CharTokenizer:
    """A tokenizer of that many characters, some of them several bytes long."""
    rest = "".join(chr(0x100 + i) for i in range(max(0, count - len(LETTERS))))
    return CharTokenizer("".join(sorted(LETTERS[:count] + rest)))


def toy(seed: int = 0, **changes: object) -> GPT:
    """A model whose biases and gains are as random as its matrices."""
    settings = {"block_size": 16, "vocab_size": 33, "n_layer": 2, "n_head": 2, "n_embd": 8}
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**settings | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            width = model.config.n_embd  # the wider, the smaller, or rounding errors would grow from layer to layer
            parameter.add_(torch.randn_like(parameter) * 0.3 * (8 / width) ** 0.5)
    return model


def source_of(model: GPT, tokenizer: Tokenizer | None) -> Source:
    tensors = {name: StoredTensor.of(p.detach()) for name, p in model.named_parameters()}
    return Source(model.config, tensors, lambda: tokenizer, "a toy")


def weights(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def opened(path: object) -> GPT:
    return build(open_model(str(path))).eval()


def assert_same_weights(found: GPT, expected: GPT) -> None:
    """Every parameter bit for bit; a bias that only one has is zero."""
    a, b = weights(expected), weights(found)
    for name in a.keys() | b.keys():
        zero = torch.zeros_like(a.get(name, b.get(name)))
        assert torch.equal(b.get(name, zero), a.get(name, zero)), name
