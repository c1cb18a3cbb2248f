"""`gpt2 bench sample`."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DeviceArg, DTypeArg, JsonFlag, ModelArg
from gpt2.training.setting import CONTEXT, SAMPLES

RANDOM = "A model as `gpt2 sample` takes it, or random:SIZE for random weights of a size, for example random:gpt2."


def bench_sample(
    model: Annotated[ModelArg, Parameter(help=RANDOM)],
    /,
    *,
    prompt_tokens: Annotated[int, CONTEXT] = 32,
    new_tokens: Annotated[int, CONTEXT] = 128,
    rounds: Annotated[int, SAMPLES] = 5,
    device: DeviceArg = "auto",
    dtype: DTypeArg = "float32",
    json_: JsonFlag = False,
) -> None:
    """Measure tokens per second of decoding one text, and the time to its first token.

    Parameters
    ----------
    prompt_tokens
        Length of the prompt in tokens, which are random.
    new_tokens
        Number of tokens to decode in a round.
    rounds
        Number of timed rounds, of which the medians are shown.
    """
    from gpt2.bench.sample import measure, open_network
    from gpt2.device import pick_device, pick_dtype

    where = pick_device(device)
    speed = measure(
        open_network(model).to(where),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        dtype=pick_dtype(dtype, where),
    )
    if json_:
        print(json.dumps(asdict(speed)))
        return
    print(
        f"{speed.tokens_per_second:,.1f} tokens/s (median of {rounds}; {speed.slowest:,.1f} to {speed.fastest:,.1f}) "
        f"· weights read at {speed.bytes_per_second / 1e9:,.1f} GB/s"
    )
    print(f"first token after {1000 * speed.seconds_to_first:,.1f} ms, of a prompt of {prompt_tokens} tokens")
