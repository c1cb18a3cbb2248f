"""The batch that llm.c's debug state is computed for."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.data.batches import gather
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.formats import llmc
from gpt2.formats.source import Source


def debug_batch(
    source: Source,
    dataset: str | None,
    batch_size: int | None,
    block_size: int | None,
    data_dir: str,
    note: Callable[[str], None],
) -> tuple[Tensor, Tensor] | None:
    """Return inputs and targets for the debug state of a model, int64 (batch_size, block_size) each.

    They come from the start of the dataset's validation split, or are random without a dataset. None stands for the
    default batch. Raises UserError for a batch that does not fit the model, and for a dataset of another tokenizer.
    """
    if (dataset, batch_size, block_size) == (None, None, None):
        return None
    context = source.config.block_size
    b = llmc.ROWS if batch_size is None else batch_size
    t = min(llmc.COLUMNS, context) if block_size is None else block_size
    if b < 1 or not 1 <= t <= context:
        raise UserError(
            f"a batch of {b}·{t} does not fit the model's {context} positions; change --batch_size or --block_size"
        )
    if dataset is None:
        known = source.known_tokenizer or source.config
        return llmc.random_batch(min(known.vocab_size, source.config.vocab_size), b, t)
    data = open_dataset(dataset, data_dir, note)
    ids = data.split("val", b * t)
    data.require_known("val", b * t + 1, source.tokenizer, source.origin)
    return gather(ids, [i * t for i in range(b)], t, torch.device("cpu"))
