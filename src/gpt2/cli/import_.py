"""`gpt2 import`."""

import shlex
from typing import Annotated, Literal

from cyclopts import Parameter

from gpt2.cli.arguments import JsonFlag, ModelArg, OutArg, TokenizerArg
from gpt2.cli.results import print_difference
from gpt2.runlog.console import note


def import_(
    model: ModelArg,
    out: Annotated[OutArg, Parameter(help="Run folder to write. It must not exist yet.")],
    /,
    *,
    tokenizer: TokenizerArg = None,
    gelu: Literal["tanh", "erf"] | None = None,
    json_: JsonFlag = False,
) -> None:
    """Make a run folder from a model of another program, to resume, sample or export it.

    What the file contains about its training is imported too: nanoGPT's settings, iteration and optimizer state, so
    that `gpt2 train --init_from=resume --out_dir=OUT --dataset=...` continues where nanoGPT stopped.

    Parameters
    ----------
    gelu
        GELU variant of the model, if its file does not give it or gives the wrong one.
    """
    from gpt2.training.import_model import import_model

    print_difference(import_model(model, out, tokenizer, gelu, note), json_)
    folder = shlex.quote(str(out))
    note(f"next: gpt2 sample {folder} · gpt2 train --init_from=resume --out_dir={folder} --dataset=DATASET")
