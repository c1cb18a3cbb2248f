"""Asks servers with OpenAI's API for the same things, and prints which of them each one does.

Start the servers first, with the same weights (`gpt2 export hf|gguf`), and give their addresses, each with a name for
its column or without one:

    python benchmarks/api_features.py ours=http://127.0.0.1:8000 vllm=http://127.0.0.1:8201

A row is `yes` where a server does what OpenAI's documentation says, and `no` where it does something else. The
last row compares greedy texts with those of the first server.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai

PROMPTS = ("The meaning of life is", "Once upon a time", "import numpy as np\n", "1, 2, 3, 4,", "In the year 1969")
FEW = {"max_tokens": 8, "temperature": 0}


class Server:
    """A server, and the model that it serves."""

    def __init__(self, address: str) -> None:
        """address: with or without the /v1 at its end."""
        self.root = address.rstrip("/").removesuffix("/v1")
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key="none", max_retries=0, timeout=120)
        try:
            self.model = self.client.models.list().data[0].id
        except (openai.APIError, httpx.InvalidURL, httpx.UnsupportedProtocol, IndexError) as error:
            sys.exit(f"{self.root}/v1 lists no model ({error}); give the address of a server, http://HOST:PORT")

    def complete(self, prompt: Any = PROMPTS[0], **settings: Any) -> Any:
        """Return a completion; `settings` beyond those of OpenAI's client go into `extra_body`."""
        return self.client.completions.create(model=self.model, prompt=prompt, **{**FEW, **settings})

    def text(self, prompt: Any = PROMPTS[0], **settings: Any) -> str:
        """Return the text of the first choice."""
        return self.complete(prompt, **settings).choices[0].text

    def is_refused(self, error: type[Exception], **settings: Any) -> bool:
        """Return whether a request is refused with this error."""
        try:
            self.complete(**settings)
        except error:
            return True
        return False


def stream(server: Server) -> bool:
    events = list(server.complete(stream=True, stream_options={"include_usage": True}))
    text = "".join(event.choices[0].text for event in events if event.choices)
    return text == server.text() and events[-1].usage.completion_tokens == FEW["max_tokens"]


def log_probabilities(server: Server) -> bool:
    found = server.complete(logprobs=3).choices[0].logprobs
    return len(found.token_logprobs) == FEW["max_tokens"] and all(len(top) >= 3 for top in found.top_logprobs)


def echo_with_log_probabilities(server: Server) -> bool:
    """What lm-eval needs."""
    answer = server.complete(echo=True, logprobs=1)
    found = answer.choices[0].logprobs
    is_echoed = answer.choices[0].text.startswith(PROMPTS[0])
    return is_echoed and found.token_logprobs[0] is None and len(found.tokens) > FEW["max_tokens"]


def stop(server: Server) -> bool:
    whole = server.text()
    end = whole[len(whole) // 2 :]
    choice = server.complete(stop=[end]).choices[0]
    return choice.text == whole[: whole.index(end)] and choice.finish_reason == "stop"


def seed(server: Server) -> bool:
    texts = [server.text(temperature=1, seed=number, max_tokens=16) for number in (1, 1, 2)]
    return texts[0] == texts[1] != texts[2]


def seed_under_load(server: Server) -> bool:
    """The text of a seed is the same among other requests."""
    alone = server.text(temperature=1, seed=1, max_tokens=16)
    many = [server.complete([PROMPTS[0], *PROMPTS], temperature=1, seed=1, max_tokens=16) for _ in range(2)]
    return all(answer.choices[0].text == alone for answer in many)


def bias(server: Server) -> bool:
    first = server.complete(logprobs=1, max_tokens=1).choices[0].text
    ids = httpx.post(f"{server.root}/tokenize", json={"prompt": first, "add_special_tokens": False}).json()["tokens"]
    return server.text(logit_bias={str(ids[0]): -100}, max_tokens=1) != first


def cancel(server: Server) -> bool:
    """After a stream is closed, the server answers as quickly as before."""
    events = server.complete(stream=True, max_tokens=400)
    next(iter(events))
    events.close()
    began = time.monotonic()
    server.text(max_tokens=1)
    return time.monotonic() - began < 5


FEATURES: dict[str, Callable[[Server], bool]] = {
    "completion": lambda s: s.complete().usage.completion_tokens == FEW["max_tokens"],
    "stream with usage": stream,
    "log-probabilities": log_probabilities,
    "echo": lambda s: s.text(echo=True).startswith(PROMPTS[0]),
    "echo with log-probabilities": echo_with_log_probabilities,
    "echo of the prompt alone": lambda s: s.text(echo=True, max_tokens=0, logprobs=1) == PROMPTS[0],
    "stop text": stop,
    "n = 3": lambda s: len({c.text for c in s.complete(n=3, temperature=1, max_tokens=16).choices}) == 3,
    "best_of": lambda s: len(s.complete(n=1, best_of=3, temperature=1).choices) == 1,
    "several prompts": lambda s: len(s.complete(list(PROMPTS)).choices) == len(PROMPTS),
    "token ids as prompt": lambda s: bool(s.text([464, 3616])),
    "seed": seed,
    "seed under load": seed_under_load,
    "logit_bias": bias,
    "presence penalty": lambda s: s.text(presence_penalty=2, max_tokens=40) != s.text(max_tokens=40),
    "cancel": cancel,
    "an unknown model is 404": lambda s: s.is_refused(openai.NotFoundError, extra_body={"model": "no such model"}),
    "too long is 400": lambda s: s.is_refused(openai.BadRequestError, max_tokens=10**6),
    "a wrong field is 400": lambda s: s.is_refused(openai.BadRequestError, extra_body={"temperature": -1}),
}


def verdict(feature: Callable[[Server], bool], server: Server) -> str:
    """Return what a server makes of a feature."""
    try:
        return "yes" if feature(server) else "no"
    except openai.APIStatusError as error:
        return f"no ({error.status_code})"
    except Exception as error:
        return f"no ({type(error).__name__})"


def greedy(server: Server) -> list[str]:
    """Return the greedy texts of all prompts, or none where the model's context is too short for them."""
    try:
        return [server.text(prompt, max_tokens=32) for prompt in PROMPTS]
    except openai.BadRequestError:
        return []


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="[NAME=]ADDRESS")
    pairs = [one.rpartition("=") for one in parser.parse_args().servers]
    servers = {name or address: Server(address) for name, _, address in pairs}
    rows = {name: [verdict(feature, s) for s in servers.values()] for name, feature in FEATURES.items()}
    texts = [greedy(server) for server in servers.values()]
    rows["greedy texts as the first"] = [f"{sum(map(str.__eq__, own, texts[0]))} of {len(PROMPTS)}" for own in texts]
    print(f"{'':28}" + "".join(f"{name:16}" for name in servers))
    for name, values in rows.items():
        print(f"{name:28}" + "".join(f"{value:16}" for value in values))


if __name__ == "__main__":
    main()
