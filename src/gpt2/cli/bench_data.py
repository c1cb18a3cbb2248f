"""`gpt2 bench data`."""

import json
from dataclasses import asdict
from typing import Annotated

from gpt2.cli.arguments import DataDirArg, DatasetArg, JsonFlag
from gpt2.runlog.console import note
from gpt2.training.setting import CONTEXT, SAMPLES, SEQUENCES, DataOrder


def bench_data(
    dataset: DatasetArg,
    /,
    *,
    batch_size: Annotated[int, SEQUENCES] = 12,
    block_size: Annotated[int, CONTEXT] = 1024,
    steps: Annotated[int, SAMPLES] = 1000,
    data_order: DataOrder = "random",
    data_dir: DataDirArg = "data",
    json_: JsonFlag = False,
) -> None:
    """Measure tokens per second of making batches from the training split of a dataset.

    Parameters
    ----------
    batch_size
        Number of sequences in a batch.
    block_size
        Number of tokens in a sequence.
    steps
        Number of batches to make.
    data_order
        Order of the training data, as in `gpt2 train`.
    """
    from gpt2.bench.data import measure
    from gpt2.data.dataset import open_dataset

    tokens = open_dataset(dataset, data_dir, note).split("train", block_size)
    speed = measure(tokens, batch_size=batch_size, block_size=block_size, steps=steps, order=data_order)
    if json_:
        print(json.dumps(asdict(speed)))
        return
    print(f"{speed.tokens_per_second:,.0f} tokens/s · {1e6 * speed.seconds:,.0f} µs per batch (median of {steps})")
