"""`gpt2 eval harness`."""

import json
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DTypeArg, JsonFlag, ModelArg, TokenizerArg


def eval_harness(
    model: ModelArg,
    /,
    *arguments: Annotated[str, Parameter(name="ARGUMENTS", allow_leading_hyphen=True)],
    tokenizer: TokenizerArg = None,
    dtype: DTypeArg = "float32",
    json_: JsonFlag = False,
) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness: `gpt2 eval harness MODEL --tasks lambada_openai,piqa`.

    Needs the package lm-eval, which gets all other arguments. `lm-eval run --help` lists them, and `lm-eval ls tasks`
    lists the tasks.

    Parameters
    ----------
    arguments
        Arguments of lm-eval: --tasks, --num_fewshot, --limit, --output_path, --device and --batch_size (by default
        auto), and others.
    """
    from gpt2.evaluation.run_harness import harness_results, run_harness

    if json_:
        print(json.dumps(harness_results(model, arguments, tokenizer, dtype)))
    else:
        run_harness(model, arguments, tokenizer, dtype)
