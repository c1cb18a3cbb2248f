"""The classes that every format's reader gives and every writer takes, and the rules that state dicts share."""

import re
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import Log, UserError
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import Tokenizer

WRAPPERS = (
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""Components of names that wrappers add anywhere: torch.compile, DDP, FSDP, activation checkpoints, DeepSpeed."""
PREFIXES = ("transformer", "model", "pretrained_model", "backbone", "gpt", "net")
"""First components of names: Hugging Face's and nanoGPT's, which OpenAI's originals lack, and those of trainers."""
OTHER_HEADS = ("multiple_choice_head", "score", "classifier", "v_head", "value_head", "summary")
"""First components of names of heads that are no language model's."""
MASKS = (".attn.bias", ".attn.masked_bias", ".attn.mask", ".attn.tril", "position_ids")
"""Endings of names that are constants of the architecture and not parameters."""
MAX_SIZE = 1 << 48
"""Bound of every integer of a configuration."""
DTYPES = (None, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of weights that float32 holds exactly; None stands for one of these."""
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Matrices that Hugging Face's Conv1D stores as (in, out), where nn.Linear has (out, in)."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays in its file until it is read."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Returns the tensor in the floating-point dtype of the file. Can be called again."""
    dtype: torch.dtype | None = None
    """Dtype in the file, where it is known before the tensor is read."""
    is_own: bool = False
    """Whether `read` returns memory that nothing else uses."""

    @classmethod
    def of(cls, tensor: Tensor) -> "StoredTensor":
        """Return the stored form of a tensor in memory, which it shares."""
        return cls(tuple(tensor.shape), lambda: tensor, tensor.dtype)

    def transposed(self) -> "StoredTensor":
        """Return the matrix with its two dimensions exchanged."""
        return StoredTensor(self.shape[::-1], lambda: self.read().t().contiguous(), self.dtype, self.is_own)


def is_plain(model: GPT) -> bool:
    """Return whether a model has the layers of this program's GPT and no others, so that its weights describe it."""
    if type(model) is not GPT:
        return False
    with torch.device("meta"):
        plain = GPT(model.config)
    layers, expected = ([(name, type(m)) for name, m in net.named_modules()] for net in (model, plain))
    return layers == expected


@dataclass(frozen=True)
class Progress:
    """Describes the training from which a model comes, as far as its file knows it."""

    step: int = 0
    """Number of optimizer steps made."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the trainer, under the names that this program or nanoGPT gives them."""
    optimizer: Callable[[], dict[str, Tensor]] | None = None
    """Reads AdamW's state, under the names of `optim.optimizers.named_state`; None where the file has none. Raises
    UserError where the state does not fit the model."""
    best_val_loss: float | None = None
    """Lowest validation loss so far, if it is known."""

    def optimizer_state(self, note: Log) -> dict[str, Tensor]:
        """Return AdamW's state; where it is missing or unreadable, report that to `note` and return nothing."""
        if self.optimizer is None:
            note("there is no optimizer state with the weights: AdamW starts with an empty state")
            return {}
        try:
            return self.optimizer()
        except UserError as error:
            note(f"{error}: AdamW starts with an empty state")
            return {}


@dataclass(frozen=True)
class Source:
    """A model file that is opened and understood, from which models can be built."""

    config: GPTConfig
    tensors: dict[str, StoredTensor]
    """Parameters under our names and in our shapes."""
    find_tokenizer: Callable[[], Tokenizer | None]
    """Returns the tokenizer, or None where neither the file nor its folder determines one."""
    origin: str
    """Name of the source for messages."""
    notes: tuple[str, ...] = ()
    """Assumptions made while reading, one line each, to be reported to the user."""
    progress: Progress = Progress()

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer. Raises UserError if it is unknown, unreadable or has ids that the model lacks."""
        if (found := self.find_tokenizer()) is None:
            raise UserError(
                f"{self.origin} brings no tokenizer; put its meta.pkl or tokenizer.json next to it, or name one with "
                "--tokenizer (gpt2, byte, or the file or folder of a dataset or a model)"
            )
        if found.vocab_size > self.config.vocab_size:
            raise UserError(
                f"the tokenizer of {self.origin} has {found.vocab_size} ids, but the model has only "
                f"{self.config.vocab_size}; name another with --tokenizer"
            )
        return found

    @property
    def known_tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer, or None where `tokenizer` raises: for callers that can work without one."""
        try:
            return self.tokenizer
        except UserError:
            return None


@dataclass(frozen=True)
class Extras:
    """Holds what an exported file contains in addition to the weights, as far as its format allows."""

    tokenizer: Tokenizer | None
    name: str
    """Name of the model, for formats that record one."""
    dtype: str
    """Dtype of the matrices: float32, bfloat16, float16 or q8_0."""
    note: Log
    """Receives a line about everything that the format cannot represent."""
    batch: tuple[Tensor, Tensor] | None = None
    """Inputs and targets of llm.c's debug state, int64 (B, T) each. Default: random ids."""
    progress: Progress = Progress()


def bare_name(name: str) -> str:
    """Return the name of a parameter without what wrappers and trainers add to it, such as `wte.weight`."""
    words = [word for word in name.split(".") if word not in WRAPPERS]
    while len(words) > 1 and words[0] in PREFIXES:
        del words[0]
    return ".".join(words)


def to_our_names(
    tensors: Iterable[tuple[str, StoredTensor]], where: object
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Return the parameters among `tensors` under our names and in our shapes, and lines about what was changed.

    Names of wrappers are removed, masks and other heads omitted, and the matrices of Conv1D, which the shape of
    `c_attn` reveals, transposed. The head is omitted, or taken for the token embedding where that is missing; raises
    UserError where both are there and differ, and where two tensors have the same name without their wrappers.
    """
    found: dict[str, StoredTensor] = {}
    others: list[str] = []
    head: StoredTensor | None = None
    for key, tensor in tensors:
        name = bare_name(key)
        if name == "lm_head.weight":
            head = tensor
        elif name.split(".")[0] in OTHER_HEADS:
            others.append(name)
        elif not name.endswith(MASKS):
            if f"transformer.{name}" in found:
                raise UserError(f"{where} holds two tensors {name[:80]!r} under different prefixes")
            found[f"transformer.{name}"] = tensor
    notes = []
    if others:
        shown = ", ".join(sorted(others)[:4]) + (" …" if len(others) > 4 else "")
        notes.append(f"{where}: omitted a head that is no language model's ({shown[:200]})")
    if cast := sorted({str(t.dtype).removeprefix("torch.") for t in found.values() if t.dtype not in DTYPES}):
        notes.append(f"{where}: its {' and '.join(cast)} weights are rounded to float32")
    if head:  # safetensors' save_model keeps one of the two names of the tied weight, the first in the alphabet
        found.setdefault("transformer.wte.weight", head)
    embedding = found.get("transformer.wte.weight")
    if head and embedding and not _equal(head, embedding):
        raise UserError(f"{where} has an lm_head.weight of its own; GPT-2's head is its token embedding")
    c_attn = found.get("transformer.h.0.attn.c_attn.weight")
    if c_attn and len(c_attn.shape) == 2 and c_attn.shape[1] == 3 * c_attn.shape[0]:
        found = {k: t.transposed() if k.endswith(TRANSPOSED) else t for k, t in found.items()}
    return found, tuple(notes)


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Return whether two tensors have the same values in the coarser of their dtypes."""
    if one.shape != other.shape:
        return False
    a, b = one.read(), other.read()
    if a.data_ptr() == b.data_ptr():
        return True
    coarser = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(a.to(coarser).nan_to_num(), b.to(coarser).nan_to_num())


def short(value: object) -> str:
    """Return a value of a file as a few characters of a message, however large it is."""
    if isinstance(value, int) and abs(value) >= MAX_SIZE:
        return f"an integer of {value.bit_length()} bits"
    return repr(value[:40]) if isinstance(value, str) else reprlib.repr(value)[:60]


def checked_config(values: Any, where: object) -> GPTConfig:
    """Return the configuration with the fields in the mapping `values`. Raises UserError for an invalid one."""
    kinds = {f.name: type(f.default) for f in fields(GPTConfig)}
    for name, value in dict(values).items():
        is_known = type(value) is kinds.get(name) or (kinds.get(name) is float and type(value) is int)
        if not is_known or (isinstance(value, int) and abs(value) >= MAX_SIZE):
            raise UserError(f"{where} describes no GPT-2: {str(name)[:40]}={short(value)}")
    try:
        return GPTConfig(**values)
    except UserError as error:
        raise UserError(f"{where} describes no GPT-2: {error}") from None


def infer_config(tensors: dict[str, StoredTensor], where: object) -> tuple[GPTConfig, str]:
    """Return the configuration that the shapes of `tensors` (our names) imply, and a line with the assumptions.

    Raises UserError where the shapes are not those of a GPT-2.
    """
    wte, wpe = tensors.get("transformer.wte.weight"), tensors.get("transformer.wpe.weight")
    layers = {int(m[1]) for key in tensors if (m := re.fullmatch(r"transformer\.h\.(\d{1,6})\..*", key))}
    if wte is None or wpe is None or not layers or len(wte.shape) != 2 or len(wpe.shape) != 2:
        raise UserError(f"{where} holds no GPT-2: it lacks wte.weight, wpe.weight or blocks")
    n_embd = wte.shape[1]
    n_head = n_embd // 64 if n_embd % 64 == 0 else 1
    config = GPTConfig(
        block_size=wpe.shape[0],
        vocab_size=wte.shape[0],
        n_layer=len(layers),
        n_head=n_head,
        n_embd=n_embd,
        bias="transformer.ln_f.bias" in tensors,
    )
    return config, f"{where} does not record its heads and GELU: assuming n_head={n_head} and tanh"
