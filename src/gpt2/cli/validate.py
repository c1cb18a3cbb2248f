"""`gpt2 validate`."""

import json
from typing import TYPE_CHECKING

from gpt2.cli.arguments import DTypeArg, JsonFlag, ModelArg, QuantizeArg
from gpt2.runlog.console import note
from gpt2.spelling import counted

if TYPE_CHECKING:
    from gpt2.evaluation.against_transformers import Comparison


def validate(
    model: ModelArg, /, *, dtype: DTypeArg = "float32", quantize: QuantizeArg = "none", json_: JsonFlag = False
) -> int:
    """Compare logits, loss and 50 greedy tokens with those of Hugging Face's implementation, which uses float32.

    Needs the package transformers. Exits with status 1 if they differ by more than rounding. With another --dtype or
    --quantize, a difference is expected, and the figures say how large it is on random tokens.
    """
    import torch

    from gpt2.device import pick_dtype
    from gpt2.evaluation.against_transformers import compare
    from gpt2.formats.open import build, open_model

    dtype_name = pick_dtype(dtype, torch.device("cpu"))
    source = open_model(model)
    found = compare(build(source).eval(), note, dtype_name, quantize)
    is_exact = dtype_name == "float32" and quantize == "none"
    if json_:
        print(json.dumps({"model": source.origin, "dtype": dtype_name, "quantize": quantize, **found.figures()}))
    else:
        print(described(found, is_exact))
    return 0 if found.agrees or not is_exact else 1


def described(found: "Comparison", is_exact: bool) -> str:
    """Return the comparison as lines of text; whether both agree is said of exact models only."""
    equal = sum(a == b for a, b in zip(found.greedy, found.transformers_greedy, strict=True))
    relative = found.logit_difference / (found.logit_scale or 1.0)
    lines = [
        f"logits  largest difference {found.logit_difference:.2g}, {relative:.1g} of the largest logit",
        f"        the same token is the likeliest at {found.same_likeliest:.1%} of the positions",
        f"loss    {found.loss:.6f}, {found.transformers_loss:.6f} in transformers",
        f"greedy  {equal} of {counted(len(found.greedy), 'token')} equal",
    ]
    if is_exact:
        agrees = "agrees with transformers" if found.agrees else "DIFFERS from transformers by more than rounding"
        lines.append(agrees)
    return "\n".join(lines)
