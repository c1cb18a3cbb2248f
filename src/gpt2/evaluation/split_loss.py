"""Measures the loss of a model over a split of a dataset."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.answers import Answers
from gpt2.data.dataset import Dataset, open_dataset
from gpt2.device import pick_device, pick_dtype
from gpt2.distributed.world import joined
from gpt2.errors import Log, UserError
from gpt2.evaluation.loss import measure, sliding
from gpt2.formats.open import build, open_model
from gpt2.formats.source import Source
from gpt2.generation.weights import Quantize, for_decoding
from gpt2.model import GPT

DIST_TIMEOUT = 600.0
"""Maximum number of seconds that processes wait for each other."""


@dataclass(frozen=True)
class SplitLoss:
    """Holds the loss of a model over a split of a dataset."""

    model: str
    """Origin of the model."""
    dataset: Path
    """Folder of the dataset."""
    split: str
    """Name of the split."""
    tokens: int
    """Number of predictions that count."""
    loss: float
    """Mean cross-entropy in nats per token."""
    bits_per_byte: float | None
    """Bits per byte of the predicted text; None if it has no bytes."""
    stride: int
    """Number of tokens by which a window moves on."""
    by_position: list[float | None] = field(repr=False)
    """Mean loss in nats at each position of the context; None where nothing was predicted."""

    @property
    def perplexity(self) -> float:
        """Return the perplexity, the exponential of the loss."""
        return math.exp(self.loss)

    def figures(self) -> dict[str, Any]:
        """Return all figures as a JSON object."""
        return {
            "model": self.model,
            "dataset": str(self.dataset),
            "split": self.split,
            "tokens": self.tokens,
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "stride": self.stride,
            "by_position": self.by_position,
        }


def measure_split(
    model: str | GPT,
    dataset: str,
    *,
    split: str = "val",
    tokens: int | None = None,
    stride: int | None = None,
    loss_after: str = "",
    batch_size: int = 16,
    data_dir: str = "data",
    device: str = "auto",
    dtype: str = "auto",
    quantize: Quantize = "none",
    log: Log = lambda line: None,
) -> SplitLoss | None:
    """Measure the loss of a model over the first `tokens` predictions of a split, or all of them.

    `model` is a GPT, or the path or name of any MODEL. `stride` is the number of tokens by which a window of the
    model's context moves on, by default the context length. loss_after: count only the tokens of answers, which begin
    after this special token and end with the next one. quantize: store the matrices as int8, as for decoding.
    `log` receives what the user should know about the dataset. The processes of torchrun share the work, and all
    except the main one return None. Raises UserError if there is no such model or dataset, if they do not fit
    together, for a stride above the context length, and where the split has no answers.
    """
    with joined(pick_device(device), "auto", DIST_TIMEOUT) as world:
        source, data, length = world.main_first(lambda: _open(model, dataset, split, tokens, stride, data_dir, log))
        ids = data.split(split, 1)
        block_size = min(source.config.block_size, length - 1)
        where = pick_device(device, world.local_rank)
        windows = sliding(length, block_size, min(stride or block_size, block_size))
        options = {"block_size": block_size, "batch_size": batch_size, "dtype": pick_dtype(dtype, where)}
        network = (model if isinstance(model, GPT) else build(source)).to(where)
        network = for_decoding(network, quantize=quantize)
        answers = Answers.after(loss_after, data.tokenizer.special) if loss_after else None
        result = measure(network, ids, windows, **options, answers=answers, world=world)
        if not world.is_main:
            return None
    return SplitLoss(
        model=source.origin,
        dataset=data.path,
        split=split,
        tokens=int(result.counts.sum()),
        loss=result.mean,
        bits_per_byte=result.bits_per_byte(data.tokenizer),
        stride=stride or block_size,
        by_position=result.by_position,
    )


def _open(
    model: str | GPT, dataset: str, split: str, tokens: int | None, stride: int | None, data_dir: str, log: Log
) -> tuple[Source, Dataset, int]:
    """Open model and dataset, and return them with the number of ids to read, which the model must have.

    Raises UserError.
    """
    if isinstance(model, GPT):
        source = Source(model.config, {}, lambda: None, "the given model")
    else:
        source = open_model(model)
    data = open_dataset(dataset, data_dir, log)
    if stride is not None and stride > (context := source.config.block_size):
        raise UserError(f"stride is {stride}, more than the model's context of {context}; lower it")
    known, available = source.known_tokenizer, len(data.split(split, 1))
    length = min(available, (tokens or available) + 1)
    if known is None:
        data.require_vocabulary(source.config.vocab_size, source.origin)
    else:
        data.require_known(split, length, known, source.origin, model if isinstance(model, str) else "")
    return source, data, length
