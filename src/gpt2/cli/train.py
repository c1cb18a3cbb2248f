"""`gpt2 train`."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.allocator import keep_freed_memory
from gpt2.cli.arguments import JsonFlag, NprocArg, RecipeArg, SettingsArg
from gpt2.cli.launch import EXIT_STOPPED, command_line, is_launched, is_main_process, is_restarted, launch
from gpt2.errors import UserError
from gpt2.formats.run_folder import saved_steps
from gpt2.runlog.console import note
from gpt2.training.config import TrainConfig
from gpt2.training.setting import PROCESSES, RECORDS


def train(
    recipe: RecipeArg = None,
    /,
    *,
    nproc: NprocArg = "1",
    max_restarts: Annotated[int, PROCESSES] = 0,
    ui: Annotated[bool, RECORDS, Parameter(negative=())] = False,
    ui_port: Annotated[int, RECORDS] = 0,
    json_: JsonFlag = False,
    config: SettingsArg = TrainConfig(),  # noqa: B008
) -> int:
    """Train, fine-tune or resume a model.

    A flag overrides the recipe, and the recipe overrides the default. A resumed run keeps its settings except for
    those given as flags, so that `gpt2 train --init_from=resume --out_dir=RUN` needs nothing else. The exit status is
    75 if a signal stopped the run; the run is saved then.

    Parameters
    ----------
    max_restarts
        Maximum number of restarts from the last checkpoint after one of the processes died.
    ui
        Serve a page with the run's curves, samples and figures on this machine during the training.
    ui_port
        Port of that page. 0 takes any free one.
    """
    if nproc != "1" and not is_launched():
        return launch(nproc, command_line(), threads=1 if config.deterministic else None, max_restarts=max_restarts)
    if is_restarted() and saved_steps(Path(config.out_dir)):
        config = replace(config, init_from="resume", overwrite=False)
    from gpt2.device import seconds_since_process_start
    from gpt2.training.loop import train as run

    keep_freed_memory()
    with watched(config, ui_port) if ui and is_main_process() else nullcontext():
        result = run(config, imports=seconds_since_process_start() or 0.0)
    if json_ and is_main_process():
        print(json.dumps(asdict(result) | {"out_dir": str(result.out_dir)}))
    return EXIT_STOPPED if result.stopped else 0


@contextmanager
def watched(config: TrainConfig, port: int) -> Iterator[None]:
    """Serve the page of a run while it trains. If that is not possible, a line reports it and the run trains."""
    from gpt2.report.live import served

    with ExitStack() as stack:
        try:
            address = stack.enter_context(served(Path(config.out_dir), TrainConfig().as_dict(), port))
            note(f"watch this run at {address}")
        except UserError as error:
            note(f"training without its page: {error}")
        yield
