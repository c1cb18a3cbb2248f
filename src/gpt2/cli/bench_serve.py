"""`gpt2 bench serve`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from gpt2.cli.arguments import JsonFlag
from gpt2.cli.results import table
from gpt2.cli.serve import api_key
from gpt2.errors import UserError
from gpt2.runlog.console import WorkConsole
from gpt2.training.setting import CONTEXT, SAMPLES, SEED, TEMPERATURE, within

if TYPE_CHECKING:
    from gpt2.bench.serve import Percentiles, ServerSpeed

SHARE = within(0, 1)
REQUESTS = 100
"""Number of requests without --requests and --seconds."""
Range = tuple[Annotated[int, CONTEXT], Annotated[int, CONTEXT]]


def bench_serve(
    url: str,
    /,
    *,
    rate: Annotated[float | None, within(1e-3, 1e6)] = None,
    concurrency: Annotated[int | None, within(1, 10_000)] = None,
    requests: Annotated[int | None, SAMPLES] = None,
    seconds: Annotated[float | None, within(0.1, 1e6)] = None,
    prompt_tokens: Annotated[Range, CONTEXT] = (16, 256),
    new_tokens: Annotated[Range, CONTEXT] = (16, 128),
    lengths: Path | None = None,
    text: Path | None = None,
    prompt_kind: Literal["text", "ids"] | None = None,
    vocab_size: Annotated[int, within(1, 1 << 24)] = 50257,
    model: str | None = None,
    api_key_file: Path | None = None,
    cancel: Annotated[float, SHARE] = 0.0,
    slow: Annotated[float, SHARE] = 0.0,
    timeout: Annotated[float, within(0.1, 86_400)] = 600.0,
    temperature: Annotated[float, TEMPERATURE] = 1.0,
    seed: Annotated[int, SEED] = 0,
    json_: JsonFlag = False,
) -> int:
    """Measure a server of OpenAI's API under load: tokens per second, and how long its users wait.

    It works with `gpt2 serve`, vLLM, llama.cpp's server and others that stream /v1/completions. The exit status is 1
    if no request was answered.

    Parameters
    ----------
    url
        Address of the server, such as http://127.0.0.1:8000.
    rate
        Mean number of requests per second, which arrive as a Poisson process however long the answers take.
    concurrency
        Number of clients instead, each of which sends its next request after the answer to its last one.
    requests
        Number of requests; 100 without --seconds.
    seconds
        How long requests are sent instead. Those that run then are still completed.
    prompt_tokens
        Smallest and largest number of tokens of a prompt.
    new_tokens
        Smallest and largest number of tokens to ask for.
    lengths
        File with the lengths to draw from instead: lines such as {"prompt_tokens": 100, "new_tokens": 20}.
    text
        Text file of whose words prompts are made. The server's answer to a first request shows how many tokens a word
        has.
    prompt_kind
        Whether prompts are text or token ids; ids without --text.
    vocab_size
        Number of different ids in prompts of random token ids.
    model
        Name of the model. Default: the first one that the server lists.
    api_key_file
        File with the API key of the server. The environment variable GPT2_API_KEY can hold it instead.
    cancel
        Share of the requests whose client closes the connection after a random number of tokens.
    slow
        Share of the requests whose client reads slowly. Their times are not reported.
    timeout
        Seconds that an answer may take.
    temperature
        Temperature of the answers. At 0 requests name no seed, which not every server takes.
    seed
        Seed of arrivals, lengths and prompts.
    """
    from gpt2.bench.http_client import address_of
    from gpt2.bench.serve import measure
    from gpt2.bench.serve_load import Load, lengths_in, ranges, words_in

    address = address_of(url, api_key(api_key_file))
    if (rate is None) == (concurrency is None):
        raise UserError("give either --rate, requests per second, or --concurrency, a number of clients")
    if requests is not None and seconds is not None:
        raise UserError("give either --requests or --seconds")
    if prompt_kind == "text" and text is None:
        raise UserError("prompts of text need --text FILE; without it, use --prompt_kind=ids")
    load = Load(
        address,
        lengths_in(lengths) if lengths is not None else ranges(prompt_tokens, new_tokens),
        words=words_in(text) if text is not None and prompt_kind != "ids" else (),
        vocab_size=vocab_size,
        model=model,
        rate=rate,
        concurrency=concurrency,
        requests=REQUESTS if requests is None and seconds is None else requests,
        seconds=seconds,
        cancel=cancel,
        slow=slow,
        timeout=timeout,
        temperature=temperature,
        seed=seed,
    )
    with WorkConsole("tokens") as console:
        speed = measure(load, console.progress)
    print(json.dumps(as_json(speed)) if json_ else as_text(speed))
    return 0 if speed.done + speed.cancelled else 1


def as_json(speed: "ServerSpeed") -> dict[str, object]:
    """Return the figures as a JSON object, with the percentiles by their names."""
    times = {name: getattr(speed, name) for name in ("first_token", "per_token", "whole")}
    return asdict(speed) | {name: found and found._asdict() for name, found in times.items()}


def as_text(speed: "ServerSpeed") -> str:
    """Return the figures as lines."""
    lines = [
        f"{speed.model}: {speed.done:,} done, {speed.cancelled:,} cancelled, {speed.failed:,} failed in "
        f"{speed.seconds:.1f} s",
        f"{speed.tokens_per_second:,.1f} tokens/s · {speed.requests_per_second:,.2f} requests/s",
        table(
            ["", "p50", "p95", "p99"],
            [
                ["time to first token", *_times(speed.first_token)],
                ["time per token", *_times(speed.per_token)],
                ["whole time", *_times(speed.whole)],
            ],
            right=["p50", "p95", "p99"],
        ),
    ]
    lines += [f"{count:,} × {message}" for message, count in speed.errors.items()]
    if others := speed.failed - sum(speed.errors.values()):
        lines.append(f"{others:,} × other failures")
    counted = "events with text" if speed.prompt_tokens is None else "the server"
    lines.append(f"tokens as counted by {counted}; this program used {speed.client_cores:.0%} of a core")
    return "\n".join(lines)


def _times(found: "Percentiles | None") -> list[str]:
    """Return percentiles as texts in milliseconds."""
    return ["-"] * 3 if found is None else [f"{1000 * seconds:,.1f} ms" for seconds in found]
