"""`gpt2 demo`."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.errors import EXIT_STOPPED
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import load_recipe, run_settings
from gpt2.training.setting import OUTPUT, within

if TYPE_CHECKING:
    from gpt2.training.loop import TrainResult

RUN_NAME = "gpt2 demo"
PROMPTS = ("def", "class", "import")


def demo(
    *,
    out_dir: Annotated[Path, OUTPUT] = Path("out-demo"),
    minutes: Annotated[float, within(0, 10**9)] = 5.0,
    smoke: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Prepare a corpus, train for a few minutes on this machine, and show loss, samples and a plot, without network.

    The corpus is the source code of the Python that runs this. An earlier demo in out_dir is replaced.

    Parameters
    ----------
    out_dir
        Folder of the run.
    minutes
        Maximum training time in minutes. 0 means no limit.
    smoke
        Train only a few optimizer steps, to check that everything works.
    """
    from gpt2.training.loop import train

    config = demo_config(out_dir, minutes, smoke)
    note(
        f"training a small GPT-2 on Python's own source: {config.max_iters} optimizer steps, which take a few minutes"
    )
    result = train(config)
    if result.stopped:
        return EXIT_STOPPED
    show(out_dir, result, sample_tokens=20 if smoke else 150)
    return 0


def demo_config(out_dir: Path, minutes: float, smoke: bool) -> TrainConfig:
    """Return the configuration of the demo. It replaces an earlier demo, and no other run."""
    is_earlier_demo = run_settings(out_dir).get("wandb_run_name") == RUN_NAME
    config = replace(
        TrainConfig(**load_recipe("pystdlib")),
        out_dir=str(out_dir),
        max_minutes=minutes,
        overwrite=is_earlier_demo,
        wandb_run_name=RUN_NAME,
    )
    return replace(config, max_iters=4, warmup_iters=1, eval_iters=1) if smoke else config


def show(out_dir: Path, result: "TrainResult", sample_tokens: int) -> None:
    """Write the plot of a finished run, and print samples and losses."""
    from gpt2.formats.open import load
    from gpt2.generation.text import generate
    from gpt2.reporting.picture import plot_runs
    from gpt2.runlog.records import read_log

    plot = out_dir / "plot.png"
    plot_runs([out_dir], plot)
    model, tokenizer = load(str(out_dir))
    for prompt in PROMPTS:
        text = generate(model, tokenizer, prompt, max_new_tokens=sample_tokens)
        print(f"--- {prompt}\n{prompt}{text}")
    first = next(r["val_loss"] for r in read_log(out_dir) if r["event"] == "eval")
    print(f"---\nvalidation loss {first:.4f} before, {result.val_loss:.4f} after {result.step} optimizer steps")
    print(f"the curves are in {plot}; more text: gpt2 sample {shlex.quote(str(out_dir))} --start=class")
