"""A model with numbers that are not finite ends with an error, in whatever format it is decoded."""

import pytest
import torch
from generation.models import random_model

from gpt2.errors import UserError
from gpt2.generation.engine import Engine
from gpt2.generation.native import compiled
from gpt2.generation.request import Request
from gpt2.generation.sampling import Sampling
from gpt2.generation.weights import for_decoding

PARAMETERS = (
    "transformer.h.0.ln_1.weight",
    "transformer.h.0.attn.c_attn.bias",
    "transformer.h.1.mlp.c_proj.weight",
    "transformer.ln_f.weight",
)


@pytest.mark.skipif(compiled("float32") is None, reason="there is no C compiler with OpenMP")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("parameter", PARAMETERS)
@pytest.mark.parametrize(("dtype", "quantize"), [("float32", "none"), ("bfloat16", "none"), ("float32", "int8")])
def test_a_damaged_model_is_an_error_in_each_format(dtype: str, quantize, parameter: str, value: float) -> None:
    """Neither rounding to 16 bits nor float16, whose largest number stands for larger ones, makes a number of it."""
    model = random_model()
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[-1] = value  # the last of a bias of attention belongs to the values
        if "bias" in parameter:
            model.get_parameter(parameter)[40] = value  # and this one to the keys
    engine = Engine(for_decoding(model, dtype, quantize))
    engine.submit(Request([1, 2, 3], 2, Sampling(temperature=0), 0))
    with pytest.raises(UserError, match="are not finite"):
        list(engine.run())
