"""`gpt2 bench train`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from gpt2.cli.arguments import JsonFlag, RecipeArg, SettingsArg
from gpt2.cli.results import results_stream
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig
from gpt2.training.setting import OUTPUT, within

if TYPE_CHECKING:
    from gpt2.bench.train import TrainingSpeed


def bench_train(
    recipe: RecipeArg = None,
    /,
    *,
    steps: Annotated[int, within(2, 10**6)] = 10,
    trace: Annotated[Path | None, OUTPUT] = None,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> None:
    """Measure tokens per second of training, the time of each phase, the MFU and the memory.

    Takes the same recipe and flags as `gpt2 train`. Nothing of the trained model is kept. Without a prepared
    dataset, the tokens are random.

    Parameters
    ----------
    steps
        Number of optimizer steps to time, after three steps of warmup.
    trace
        Write PyTorch's profile of two further optimizer steps to this file, for chrome://tracing or Perfetto. A name
        that ends with .gz is compressed.
    """
    from gpt2.bench.train import check_trace, measure

    if trace is not None:
        check_trace(trace)
    from gpt2.device import keep_freed_memory

    keep_freed_memory()
    speed = measure(config, steps, note, trace)
    print(json.dumps(asdict(speed)) if json_ else described(speed, steps), file=results_stream(trace))


def described(speed: "TrainingSpeed", steps: int) -> str:
    """Return the figures as lines of text."""
    phases = " · ".join(f"{phase} {1000 * seconds:.1f}" for phase, seconds in speed.seconds.items())
    sheet = "" if speed.mfu_data_sheet is None else f", {100 * speed.mfu_data_sheet:.1f}% of the data sheet's"
    return (
        f"{speed.tokens_per_second:,.0f} tokens/s (median of {steps} optimizer steps; "
        f"{speed.slowest:,.0f} to {speed.fastest:,.0f})\n"
        f"{1000 * speed.tokens_per_step / speed.tokens_per_second:,.1f} ms per optimizer step: {phases}\n"
        f"MFU {100 * speed.mfu_measured:.1f}% of this device's measured {speed.dtype} matrix products{sheet}\n"
        f"peak memory {speed.peak_memory / 1e9:.2f} GB · first optimizer step after {speed.until_first_update:.1f} s"
    )
