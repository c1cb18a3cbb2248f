"""A server with a tiny model, in a thread of the test's process."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from generation.models import random_model

from gpt2.formats.open import load
from gpt2.generation.engine import Engine
from gpt2.model import GPT
from gpt2.serve import pages
from gpt2.serve.app import Api
from gpt2.serve.decoder import Decoder
from gpt2.serve.run import MOST_CONNECTIONS, Server, listen
from gpt2.serve.served import Served
from gpt2.serve.web import make_app
from gpt2.tokenizers import ByteTokenizer, Tokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no role ' + m.role) }}"
    "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


class SlowEngine(Engine):
    """An engine whose steps take at least some time, so that a test can act between them."""

    seconds = 0.005

    def step(self) -> list[Any]:
        time.sleep(self.seconds)
        return super().step()


@dataclass
class Running:
    """A server that runs."""

    address: str
    served: Served
    network: GPT
    server: Server
    lines: list[str]
    """The lines of its log."""
    api: Api

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        """Send a JSON object, with the name of the model."""
        return CLIENT.post(self.address + path, json={"model": "tiny"} | fields)

    @property
    def is_empty(self) -> bool:
        """Whether no request is decoded or waits."""
        return not self.served.decoder.streams and self.served.decoder.engine.is_idle

    def becomes(self, condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        """Wait until a condition holds; returns whether it does."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.005)
        return condition()


def chat_tokenizer() -> Tokenizer:
    """A byte tokenizer with a chat template."""
    tokenizer = ByteTokenizer()
    tokenizer.special = replace(tokenizer.special, chat_template=TEMPLATE)
    return tokenizer


@contextmanager
def running(
    *,
    engine: type[Engine] = Engine,
    network: GPT | None = None,
    tokenizer: Tokenizer | None = None,
    block_size: int = 128,
    slots: int = 4,
    queue: int = 64,
    seconds: float = 60.0,
    grace: float = 0.5,
    api_key: str | None = None,
    connections: int = MOST_CONNECTIONS,
    prefix_bytes: int = 1 << 20,
    others: Mapping[str, GPT] | None = None,
    run: Path | None = None,
    **guard: Any,
) -> Iterator[Running]:
    """Run a server with a model, by default a tiny one of `block_size`, until the end of the block.

    others: further models by name, with the same tokenizer. run: the folder of the run that the model is from.
    """
    network, words, lines = network or random_model(block_size=block_size), tokenizer or ByteTokenizer(), list[str]()

    def serve(name: str, network: GPT) -> Served:
        ids = min(network.config.vocab_size, words.vocab_size)
        made = engine(network, slots=slots, vocab_size=ids, prefix_bytes=prefix_bytes, prefill_tokens=64)
        return Served(name, "a random model", network.config, words, Decoder(made, slots, queue, lines.append))

    served = replace(serve("tiny", network), run=run)
    api = Api([served, *(serve(*other) for other in (others or {}).items())], seconds, lines.append)
    app = make_app([*pages.routes(), *api.routes()], api.lifespan, api_key=api_key, **guard)
    server = Server(app, grace, api.fail, connections=connections)
    listener = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    one = Running(address, served, network, server, lines, api)
    assert one.becomes(lambda: server.started)
    try:
        yield one
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server does not end"
        assert not served.decoder.thread.is_alive(), "the decoder does not end"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    """A server whose model has a chat template."""
    with running(tokenizer=chat_tokenizer()) as one:
        yield one


@pytest.fixture(scope="module")
def learned(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Path]]:
    """A server of a run with snapshots of steps 0, 1, 2, 4, 8 and 10 and a checkpoint of step 5, and of no run."""
    run = tmp_path_factory.mktemp("learned") / "run"
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64, "batch_size": 4, "learning_rate": 1e-2}
    machine = {"device": "cpu", "dtype": "float32", "compile": False}
    often = {"max_iters": 10, "eval_interval": 0, "checkpoint_interval": 5, "snapshot_interval": "geometric"}
    train(TrainConfig(out_dir=str(run), dataset=str(dataset), **shape, **machine, **often))
    model, tokenizer = load(run)
    with running(network=model, tokenizer=tokenizer, run=run, others={"other": model}) as one:
        yield one, run
