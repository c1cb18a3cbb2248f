"""`gpt2 prune`."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag
from gpt2.spelling import counted
from gpt2.training.setting import SAMPLES, STEPS

if TYPE_CHECKING:
    from gpt2.training.prune import Pruning


def prune(
    *runs: Annotated[Path, Parameter(required=True)],
    keep_last: Annotated[int, SAMPLES] = 1,
    keep_every: Annotated[int, STEPS] = 0,
    yes: Annotated[bool, Parameter(negative=())] = False,
    json_: JsonFlag = False,
) -> None:
    """Delete checkpoints that are not needed. Without --yes, only print what would be deleted.

    The checkpoint with the best validation loss and the latest always stay, and so does everything that is no
    checkpoint. A run that is training is refused.

    Parameters
    ----------
    runs
        Run folders.
    keep_last
        Number of newest checkpoints that stay.
    keep_every
        Checkpoints at multiples of this number of steps stay. 0 means none.
    yes
        Delete them.
    """
    from gpt2.training.prune import carry_out, choose, idle

    with ExitStack() as stack:
        different = {os.path.realpath(run): run for run in runs}.values()
        for run in different:
            stack.enter_context(idle(run, writes=yes))
        chosen = [choose(run, keep_last, keep_every) for run in different]
        for pruning in chosen if yes else ():
            carry_out(pruning)
    if json_:
        print(json.dumps({"deleted": yes, "runs": [pruning.figures() for pruning in chosen]}))
    else:
        print("\n".join(described(pruning, yes) for pruning in chosen))


def described(chosen: "Pruning", is_done: bool) -> str:
    """Return what a rule deletes, as lines of text."""
    from gpt2.reporting.style import file_size

    lines = [f"{chosen.run}"]
    lines += [f"  keep    step {step:,} ({reason})" for step, reason in chosen.kept.items()]
    lines += [f"  delete  {folder.name}  {file_size(size)}" for folder, size in chosen.removed.items()]
    if not chosen.removed:
        return "\n".join([*lines, "  nothing to delete"])
    count = len(chosen.removed)
    freed = f"{counted(count, 'checkpoint')}, {file_size(chosen.bytes)}"
    return "\n".join([*lines, f"  deleted {freed}" if is_done else f"  would free {freed}; add --yes to delete them"])
