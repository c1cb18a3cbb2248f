"""Runs EleutherAI's lm-evaluation-harness as its command line does, with a model of this program."""

import contextlib
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpt2.errors import UserError, first_line

SETTINGS_CHECKED_IN = ("lm_eval.config", "lm_eval.evaluator")
"""Modules in which lm-eval checks its settings, so that a ValueError from them is the user's mistake."""


def run_harness(model: str, arguments: Sequence[str], tokenizer: str | None, dtype: str) -> None:
    """Run `lm-eval run` with its command-line `arguments` on a model; lm-eval prints its table.

    Raises UserError if lm-eval is not installed, or if it or the model refuses an argument.
    """
    try:
        from lm_eval.__main__ import cli_evaluate

        from gpt2.evaluation.harness import NAME
    except ImportError as error:
        raise UserError(f"EleutherAI's harness is not installed ({error}); pip install lm-eval") from None
    settings = {"pretrained": model, "tokenizer": tokenizer, "dtype": dtype}
    described = json.dumps({name: value for name, value in settings.items() if value is not None})
    from_file = any(argument.split("=")[0] in ("--config", "-C") for argument in arguments)
    defaults = [] if from_file else ["--device", "auto", "--batch_size", "auto"]  # instead of lm-eval's cuda:0 and 1
    _run(cli_evaluate, [*defaults, *arguments, "--model", NAME, "--model_args", described])


def harness_results(model: str, arguments: Sequence[str], tokenizer: str | None, dtype: str) -> dict[str, Any]:
    """Run the harness, print its table to standard error, and return its results. Raises as `run_harness` does."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):
            run_harness(model, [*arguments, "--output_path", folder], tokenizer, dtype)
        [results] = Path(folder).rglob("results_*.json")
        return json.loads(results.read_text(encoding="utf-8"))


def _run(main: Callable[[], None], arguments: list[str]) -> None:
    """Run lm-eval's command line. Raises UserError for settings that it refuses."""
    before = sys.argv
    sys.argv = ["lm-eval", "run", *arguments]
    try:
        main()
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(SETTINGS_CHECKED_IN):
            raise  # a fault, not a refused setting
        raise UserError(f"lm-eval: {first_line(error)}") from None
    finally:
        sys.argv = before
