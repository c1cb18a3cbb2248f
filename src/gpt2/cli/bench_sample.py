"""`gpt2 bench sample`."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from gpt2.cli.arguments import DeviceArg, DTypeArg, JsonFlag, ModelArg, QuantizeArg
from gpt2.runlog.console import note
from gpt2.training.setting import CONTEXT, SAMPLES

RANDOM = "A model as `gpt2 sample` takes it, or random:SIZE for random weights of a size, for example random:gpt2."


def bench_sample(
    model: Annotated[ModelArg, Parameter(help=RANDOM)],
    /,
    *,
    batch_size: Annotated[tuple[Annotated[int, SAMPLES], ...], Parameter(consume_multiple=True, negative=())] = (1,),
    prompt_tokens: Annotated[int, CONTEXT] = 32,
    new_tokens: Annotated[int, CONTEXT] = 128,
    rounds: Annotated[int, SAMPLES] = 5,
    device: DeviceArg = "auto",
    dtype: DTypeArg = "float32",
    quantize: QuantizeArg = "none",
    json_: JsonFlag = False,
) -> None:
    """Measure tokens per second of decoding, the time to the first token, and how fast the weights are read.

    Parameters
    ----------
    batch_size
        Number of texts that are decoded together; several numbers make a table.
    prompt_tokens
        Length of a prompt in tokens, which are random.
    new_tokens
        Number of tokens to decode after each prompt in a round.
    rounds
        Number of timed rounds, of which the medians are shown.
    """
    from gpt2.bench.sample import measure, open_network, read_bandwidth
    from gpt2.device import pick_device, pick_dtype
    from gpt2.generation.native import why_not_native

    where = pick_device(device)
    network = open_network(model, where, pick_dtype(dtype, where), quantize)
    if reason := why_not_native(network):
        note(reason)
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    speeds = [measure(network, batch_size=size, **sizes) for size in batch_size]
    bandwidth = read_bandwidth(where)
    if json_:
        print(json.dumps({"read_bandwidth": bandwidth, "speeds": [asdict(speed) for speed in speeds]}))
        return
    print("batch  tokens/s (slowest to fastest)   first token   per token   weights read       peak memory")
    for speed in speeds:
        spread = f"({speed.slowest:,.1f} to {speed.fastest:,.1f})"
        first, each = 1000 * speed.seconds_to_first, 1000 * speed.seconds_per_token
        read = f"{speed.bytes_per_second / 1e9:.1f} GB/s, {100 * speed.bytes_per_second / bandwidth:.0f}%"
        print(
            f"{speed.batch_size:5}  {speed.tokens_per_second:8,.1f} {spread:22} {first:8.1f} ms "
            f"{each:8.2f} ms   {read:16} {speed.memory / 1e9:9.2f} GB"
        )
    print(f"medians of {rounds} rounds; this machine reads {bandwidth / 1e9:.1f} GB/s, of which the share is shown")
