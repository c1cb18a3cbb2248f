"""`gpt2 validate`."""

import json
from typing import TYPE_CHECKING

from gpt2.cli.arguments import JsonFlag, ModelArg
from gpt2.runlog.console import note

if TYPE_CHECKING:
    from gpt2.evaluation.against_transformers import Comparison


def validate(model: ModelArg, /, *, json_: JsonFlag = False) -> int:
    """Compare logits, loss and 50 greedy tokens with those of Hugging Face's implementation.

    Needs the package transformers. Exits with status 1 if they differ by more than rounding.
    """
    from gpt2.evaluation.against_transformers import compare
    from gpt2.formats.open import build, open_model

    source = open_model(model)
    found = compare(build(source).eval(), note)
    if json_:
        print(json.dumps({"model": source.origin, **found.figures()}))
    else:
        print(described(found))
    return 0 if found.agrees else 1


def described(found: "Comparison") -> str:
    """Return the comparison as lines of text."""
    equal = sum(a == b for a, b in zip(found.greedy, found.transformers_greedy, strict=True))
    relative = found.logit_difference / (found.logit_scale or 1.0)
    return (
        f"logits  largest difference {found.logit_difference:.2g}, {relative:.1g} of the largest logit\n"
        f"loss    {found.loss:.6f}, {found.transformers_loss:.6f} in transformers\n"
        f"greedy  {equal} of {len(found.greedy)} tokens equal\n"
        + ("agrees with transformers" if found.agrees else "DIFFERS from transformers by more than rounding")
    )
