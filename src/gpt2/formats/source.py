"""What every format gives when it opens a model file."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gpt2.errors import UserError
from gpt2.model import GPTConfig
from gpt2.tokenizers import Tokenizer

Note = Callable[[str], None]


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
    """Reads AdamW's state under the names of `optim.optimizers.named_state`; None where the file has none. Raises
    UserError where it is not the model's."""
    best_val_loss: float | None = None
    """Lowest validation loss so far, where it is known."""

    def moments(self, note: Note) -> dict[str, Tensor]:
        """AdamW's state, or nothing where there is none or it cannot be read, which `note` is told."""
        if self.optimizer is None:
            note("there is no optimizer state with the weights: AdamW starts with its memory empty")
            return {}
        try:
            return self.optimizer()
        except UserError as error:
            note(f"{error}: AdamW starts with its memory empty")
            return {}


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
        """The tokenizer. Raises UserError where it is not known, cannot be read or has ids the model lacks."""
        if (found := self.find_tokenizer()) is None:
            raise UserError(
                f"{self.origin} brings no tokenizer; put its meta.pkl or tokenizer.json beside it, or name one with "
                "--tokenizer (gpt2, byte, or the folder of a dataset or a model)"
            )
        if found.vocab_size > self.config.vocab_size:
            raise UserError(
                f"the tokenizer of {self.origin} has {found.vocab_size} ids, and the model rows for only "
                f"{self.config.vocab_size}; name another with --tokenizer"
            )
        return found

    @property
    def known_tokenizer(self) -> Tokenizer | None:
        """The tokenizer for what can do without: None where `tokenizer` raises."""
        try:
            return self.tokenizer
        except UserError:
            return None


@dataclass(frozen=True)
class Extras:
    """What goes into a file besides the model, as far as its format has room for it."""

    tokenizer: Tokenizer | None
    name: str
    dtype: str
    """Of the matrices: float32, bfloat16, float16 or q8_0."""
    note: Note
    """Receives what the file cannot say and its user must know."""
    batch: tuple[Tensor, Tensor] | None = None
    """Inputs and targets for llm.c's debug state, int64 (B, T). Default: random ids."""
    progress: Progress = Progress()
