"""What every format gives when it opens a model file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gpt2.errors import UserError
from gpt2.model import GPTConfig
from gpt2.tokenizers import Tokenizer


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Gives the tensor, in the floating-point format of the file."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        return cls(tuple(tensor.shape), lambda: tensor)

    def transposed(self) -> "Stored":
        """The same matrix with its dimensions exchanged."""
        return Stored(self.shape[::-1], lambda: self.read().t().contiguous())


@dataclass(frozen=True)
class Progress:
    """What a file knows of the training its model is from."""

    step: int = 0
    """Optimizer updates made."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The trainer's settings under its own names, which are ours or nanoGPT's."""
    optimizer: Callable[[], dict[str, Tensor]] | None = None
    """Reads AdamW's state under the names of `optim.adamw.named_state`; None where the file has none."""


@dataclass(frozen=True)
class Source:
    """A model in a file, opened and understood but not yet built."""

    config: GPTConfig
    tensors: dict[str, Stored]
    """Under our parameter names and in our shapes. Building the model empties it, so as to hold nothing twice."""
    find_tokenizer: Callable[[], Tokenizer | None]
    """Gives the tokenizer, or None where neither the file nor what lies beside it tells which it is."""
    origin: str
    """Where it came from, for people."""
    notes: tuple[str, ...] = ()
    """What was assumed in reading it, for people."""
    progress: Progress = Progress()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises UserError where it is not known."""
        if (tokenizer := self.find_tokenizer()) is None:
            raise UserError(
                f"{self.origin} brings no tokenizer; put its meta.pkl or tokenizer.json beside it, or name one with "
                "--tokenizer (gpt2, byte, or a dataset's folder)"
            )
        return tokenizer


@dataclass(frozen=True)
class Extras:
    """What goes into a file besides the model, as far as its format has room for it."""

    tokenizer: Tokenizer | None
    name: str
    dtype: str
    """Of the matrices: float32, bfloat16, float16 or q8_0."""
    batch: tuple[Tensor, Tensor]
    """Inputs and targets for llm.c's debug state, int64 (B, T)."""
    progress: Progress = Progress()
