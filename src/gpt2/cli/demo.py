"""`gpt2 demo`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.runlog.console import note

RUN_NAME = "gpt2 demo"
PROMPTS = ("def", "class", "import")


def demo(
    *, out_dir: Path = Path("out-demo"), minutes: float = 5.0, smoke: Annotated[bool, Parameter(negative=())] = False
) -> int:
    """Prepare a corpus, train a few minutes on this machine, show loss, samples and a plot. No network.

    The corpus is the source of the Python that runs this. An earlier demo in out_dir is replaced.

    Parameters
    ----------
    out_dir
        Folder of the run.
    minutes
        Train no longer than this; 0 is no limit.
    smoke
        A few updates only, to see that everything works.
    """
    from gpt2.cli.train import EXIT_STOPPED
    from gpt2.formats.open import load
    from gpt2.generation.engine import generate
    from gpt2.report.picture import plot_runs
    from gpt2.runlog.records import read_log
    from gpt2.training.config import TrainConfig
    from gpt2.training.loop import train
    from gpt2.training.recipes import load_recipe, run_settings

    config = TrainConfig(**load_recipe("pystdlib"))
    earlier_demo = run_settings(out_dir).get("wandb_run_name") == RUN_NAME  # and nobody's run
    config = replace(
        config, out_dir=str(out_dir), max_minutes=minutes, overwrite=earlier_demo, wandb_run_name=RUN_NAME
    )
    if smoke:
        config = replace(config, max_iters=4, warmup_iters=1, eval_iters=1)
    note(f"training a small GPT-2 on Python's own source: {config.max_iters} updates, a few minutes")
    result = train(config)
    if result.stopped:
        return EXIT_STOPPED
    plot = out_dir / "plot.png"
    plot_runs([out_dir], plot)
    model, tokenizer = load(str(out_dir))
    for prompt in PROMPTS:
        text = generate(model, tokenizer, prompt, max_new_tokens=20 if smoke else 150)
        print(f"--- {prompt}\n{prompt}{text}")
    first = next(r["val_loss"] for r in read_log(out_dir) if r["event"] == "eval")
    print(f"---\nvalidation loss {first:.4f} before, {result.val_loss:.4f} after {result.step} updates")
    print(f"the curves are in {plot}; more text: gpt2 sample {out_dir} --start=class")
    return 0
