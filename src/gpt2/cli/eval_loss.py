"""`gpt2 eval loss`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gpt2.cli.arguments import (
    DataDirArg,
    DatasetArg,
    DeviceArg,
    DTypeArg,
    JsonFlag,
    ModelArg,
    NprocArg,
    QuantizeArg,
    SplitArg,
)
from gpt2.cli.launch import command_line, is_launched, launch
from gpt2.runlog.console import note
from gpt2.spelling import counted
from gpt2.training.setting import CONTEXT, OUTPUT, SEQUENCES, within

if TYPE_CHECKING:
    from gpt2.evaluation.split_loss import SplitLoss


def eval_loss(
    model: ModelArg,
    dataset: DatasetArg,
    /,
    *,
    split: SplitArg = "val",
    tokens: Annotated[int | None, within(1, 10**18)] = None,
    stride: Annotated[int | None, CONTEXT] = None,
    loss_after: str = "",
    batch_size: Annotated[int, SEQUENCES] = 16,
    plot: Annotated[Path | None, OUTPUT] = None,
    data_dir: DataDirArg = "data",
    device: DeviceArg = "auto",
    dtype: DTypeArg = "auto",
    quantize: QuantizeArg = "none",
    nproc: NprocArg = "1",
    json_: JsonFlag = False,
) -> int | None:
    """Measure mean loss, perplexity and bits per byte over a complete split.

    Every token except the first is predicted once. Bits per byte are comparable between models with different
    tokenizers. `--json` also gives the loss at each position of the context.

    Parameters
    ----------
    tokens
        Number of tokens to predict, from the start of the split. Default: all.
    stride
        Number of tokens by which a window of the model's context moves on. Default: the context length; a smaller
        stride gives every token more context and takes longer.
    loss_after
        Count only answers: the tokens after this special token, such as <|assistant|>, up to and including the next
        special token. Default: all tokens.
    batch_size
        Number of windows in a batch.
    plot
        Draw the loss at each position of the context into this picture.
    """
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line())
    from gpt2.device import keep_freed_memory

    keep_freed_memory()
    from gpt2.evaluation.split_loss import measure_split
    from gpt2.reporting.picture import check_name

    if plot is not None:
        check_name(plot)
    where = {"data_dir": data_dir, "device": device, "dtype": dtype, "quantize": quantize}
    what = {"split": split, "tokens": tokens, "stride": stride, "loss_after": loss_after}
    found = measure_split(model, dataset, **what, batch_size=batch_size, **where, log=note)
    show(found, plot, json_)
    return None


def show(found: "SplitLoss | None", plot: Path | None, as_json: bool) -> None:
    """Draw and print the figures, which only the main process has."""
    from gpt2.reporting.picture import plot_positions

    if found is None:
        return
    if plot is not None:
        plot_positions(found.by_position, f"{found.model}, {found.split} of {found.dataset}", plot)
    if as_json:
        print(json.dumps(found.figures()))
        return
    bits = "" if found.bits_per_byte is None else f" · {found.bits_per_byte:.4f} bits per byte"
    print(
        f"{found.split} loss {found.loss:.4f} · perplexity {found.perplexity:.2f}{bits} · "
        f"{counted(found.tokens, 'token')} · {found.model}"
    )
