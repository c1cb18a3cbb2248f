"""What every format gives when it opens a model file."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from gpt2.model import GPTConfig
from gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model in a file, opened and understood but not yet built."""

    config: GPTConfig
    tensors: Iterable[tuple[str, Tensor]]
    """(our parameter name, float tensor in our shape), each parameter once."""
    tokenizer: Tokenizer
    origin: str
    """Where it came from, for people."""
