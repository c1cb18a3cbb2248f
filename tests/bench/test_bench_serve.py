"""The load generator, against servers whose answers are known. No test checks a time of this machine."""

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_server import HEAD, WORDS, Fake, listening, measured, send, send_event, send_json, usage

from gpt2.bench import http_client
from gpt2.bench.http_client import address_of
from gpt2.bench.serve import Answer, LoadGenerator, Percentiles, ServerSpeed
from gpt2.bench.serve_load import Load, ranges
from gpt2.cli.bench_serve import as_text
from gpt2.errors import UserError
from gpt2.tokenizers import CharTokenizer


@pytest.mark.parametrize("settings", [{"concurrency": 3}, {"rate": 500.0}])
def test_everything_is_counted(settings: dict[str, Any]) -> None:
    fake, progress = Fake(), []
    speed = measured(fake, progress, words=WORDS, requests=40, **settings)
    tried, *bodies = fake.bodies
    assert (speed.model, speed.done, speed.cancelled, speed.failed, speed.errors) == ("first", 40, 0, 0, {})
    assert speed.new_tokens == sum(body["max_tokens"] for body in bodies)
    assert speed.prompt_tokens == sum(2 * len(body["prompt"].split()) for body in bodies)
    assert speed.tokens_per_second == pytest.approx(speed.new_tokens / speed.seconds)
    assert speed.requests_per_second == pytest.approx(40 / speed.seconds)
    for times in (speed.first_token, speed.per_token, speed.whole):
        assert times is not None and 0 < times.p50 <= times.p95 <= times.p99
    assert speed.first_token < speed.whole
    assert tried["max_tokens"] == 1
    assert {body["model"] for body in bodies} == {"first"}
    assert {2, 9} <= {body["max_tokens"] for body in bodies} <= set(range(2, 10))
    # a word has two tokens here, which the first answer showed
    assert {len(body["prompt"].split()) for body in bodies} <= set(range(2, 11))
    assert all(body["prompt"] in " ".join(WORDS * 3) for body in bodies)
    assert [len(body["prompt"].split()) for body in bodies] != [len(bodies[0]["prompt"].split())] * 40
    assert progress[0] == (0, 40, 0)
    assert progress[-1] == (40, 40, speed.new_tokens)
    if "concurrency" in settings:
        assert fake.most_open == 3


def test_a_load_depends_on_its_seed_alone() -> None:
    def bodies(fake: Fake) -> list[dict[str, Any]]:
        return sorted(fake.bodies[1:], key=lambda body: body["seed"])

    fakes = [Fake() for _ in range(4)]
    for fake, settings in zip(
        fakes, ({"concurrency": 1}, {"concurrency": 4}, {"rate": 900.0}, {"seed": 1}), strict=True
    ):
        measured(fake, vocab_size=50, **settings)
    assert bodies(fakes[0]) == bodies(fakes[1]) == bodies(fakes[2]) != bodies(fakes[3])
    prompts = [body["prompt"] for body in bodies(fakes[0])]
    assert all(4 <= len(prompt) <= 20 for prompt in prompts)
    assert {i for prompt in prompts for i in prompt} <= set(range(50))


def test_times_by_hand() -> None:
    answer = Answer(due=10.0)
    assert not answer.receive({"choices": [{"text": ""}]}, 10.2)
    assert answer.receive({"choices": [{"text": "a"}]}, 10.5)
    assert answer.receive({"choices": [{"text": "bc"}]}, 10.75)
    assert answer.receive({"choices": [{"text": "d"}]}, 11.5)
    assert answer.n_tokens == 3
    assert not answer.receive({"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 7}}, 11.6)
    answer.end = 12.0
    generator = LoadGenerator(Load(address_of("http://x"), ranges((1, 1), (1, 1)), rate=1, requests=1), print)
    generator.timed = generator.done = [answer]
    generator.n_tokens = answer.n_tokens
    speed = generator._summary(4.0, 1.0)
    assert (speed.first_token, speed.whole) == (Percentiles(0.5, 0.5, 0.5), Percentiles(2.0, 2.0, 2.0))
    assert speed.per_token == Percentiles(0.25, 0.25, 0.25)  # four tokens in a second after the first one
    assert (speed.tokens_per_second, speed.requests_per_second, speed.client_cores) == (1.25, 0.25, 0.25)
    assert speed.prompt_tokens == 7


def test_requests_arrive_whether_others_are_answered_or_not() -> None:
    """Nobody is answered before all twelve have come."""
    everybody = asyncio.Event()

    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if len(fake.bodies) == 13:
            everybody.set()
        if len(fake.bodies) > 1:
            await everybody.wait()
        await fake.answer(body, writer)

    assert measured(Fake(respond), rate=300.0, requests=12).done == 12


def test_requests_for_some_seconds() -> None:
    for settings in ({"concurrency": 2}, {"rate": 100.0}):
        fake, progress = Fake(), []
        speed = measured(fake, progress, seconds=0.3, **settings)
        assert speed.done == len(fake.bodies) - 1 > 1
        assert progress[-1][:2] == (300, 300)


@pytest.mark.parametrize("settings", [{"concurrency": 2}, {"rate": 500.0}])
def test_errors_are_reported_and_stop_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        match len(fake.bodies):
            case 2 | 3:
                await send_json(writer, 429, {"error": {"message": "the queue is full", "code": "x"}})
            case 4:
                await send_json(writer, 500, {"detail": "oh\nno"})
            case 5:
                writer.write(b"HTTP/1.1 503 x\r\nContent-Length: 7\r\n\r\nin text")
            case 6:
                writer.write(b"what is this?\r\n\r\n")
            case 7:
                writer.write(HEAD)  # and nothing more
            case 8:
                writer.write(HEAD)
                await send_event(writer, {"choices": [{"text": "a"}]})
                await send_event(writer, {"error": {"message": "it failed later"}})
            case 9:
                writer.write(HEAD)
                await send_event(writer, {"choices": [{"text": "a"}]})
                await send(writer, b"")  # without [DONE]
            case 10:
                writer.write(HEAD)
                await send(writer, b"data: 5\n\n")
            case 11:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                writer.transport.abort()  # which resets the connection then
            case _:
                await fake.answer(body, writer)

    fake = Fake(respond)
    speed = measured(fake, requests=15, **settings)
    assert (speed.done, speed.failed) == (5, 10)
    assert len(speed.errors) == 5
    assert speed.errors["status 429: the queue is full"] == 2
    assert "\n2 × status 429: the queue is full\n" in as_text(speed)
    assert f"\n{10 - sum(speed.errors.values())} × other failures\n" in as_text(speed)
    assert speed.new_tokens == sum(body["max_tokens"] for body in fake.bodies[11:]) + 2
    monkeypatch.setattr("gpt2.bench.serve.KINDS_OF_ERRORS", 99)
    found = measured(Fake(respond), requests=15, concurrency=1).errors
    expected = {
        "status 429: the queue is full": 2,
        "status 500: oh no": 1,
        "status 503: in text": 1,
        "the answer cannot be read: it is not HTTP (illegal status line": 1,
        "the answer cannot be read: the connection ended before the answer": 1,
        "the stream ended with an error: it failed later": 1,
        "the stream ended before [DONE]": 1,
        "an event is not a JSON object: 5": 1,
        "the connection broke off (": 1,
    }
    assert list(found.values()) == list(expected.values())
    for message, beginning in zip(found, expected, strict=True):
        assert message.startswith(beginning)


def test_an_answer_that_takes_too_long_is_a_failure() -> None:
    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await (fake.answer(body, writer) if len(fake.bodies) == 1 else asyncio.sleep(60))

    fake = Fake(respond)
    assert measured(fake, requests=2, timeout=0.2).errors == {"the answer took longer than 0.2 s": 2}


def test_who_cancels_closes_the_connection() -> None:
    """The server never ends its answers, so only clients do."""

    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if len(fake.bodies) == 1:
            return await fake.answer(body, writer)
        writer.write(HEAD)
        while True:
            await send_event(writer, {"choices": [{"text": "x"}]})

    async def run() -> ServerSpeed:
        async with listening(fake), asyncio.timeout(60):
            load = Load(fake.address, ranges((4, 20), (2, 9)), concurrency=2, requests=8, cancel=1.0)
            speed = await LoadGenerator(load, lambda *given: None).run()
            while fake.n_left < 8:
                await asyncio.sleep(0.005)
            return speed

    fake = Fake(respond)
    speed = asyncio.run(run())
    assert (speed.done, speed.cancelled, speed.failed) == (0, 8, 0)
    assert 8 <= speed.new_tokens <= sum(body["max_tokens"] for body in fake.bodies[1:])
    assert speed.first_token is speed.per_token is speed.whole is None


def test_greedy_requests_name_no_seed() -> None:
    fake = Fake()
    measured(fake, temperature=0.0, requests=3)
    assert [(body["temperature"], "seed" in body) for body in fake.bodies[1:]] == [(0.0, False)] * 3
    fake = Fake()
    measured(fake, requests=3)
    assert sorted((body["temperature"], body["seed"]) for body in fake.bodies[1:]) == [(1.0, n) for n in range(3)]


def test_some_cancel_and_some_read_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.bench.serve.SLOW_SECONDS", 0.001)
    pauses: list[float] = []
    sleep = asyncio.sleep
    monkeypatch.setattr(http_client.asyncio, "sleep", lambda s: pauses.append(s) or sleep(s))
    speed = measured(Fake(), cancel=0.5, slow=0.5, requests=100, concurrency=8)
    assert speed.done + speed.cancelled == 100
    assert 20 < speed.cancelled < 80
    assert pauses.count(0.001) > 25  # for each read, which can be of several events
    speed = measured(Fake(), slow=1.0, requests=4)
    assert (speed.done, speed.first_token, speed.per_token, speed.whole) == (4, None, None, None)


def test_tokens_are_what_the_server_counts() -> None:
    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """Send all tokens in one event, or none with text."""
        writer.write(HEAD)
        await send_event(writer, {"choices": [{"text": "some text" if len(fake.bodies) % 2 else ""}]})
        await send_event(writer, {"choices": [], "usage": usage(body, body["max_tokens"])})
        await send(writer, b"data: [DONE]\n\n")
        await send(writer, b"")

    fake = Fake(respond)
    speed = measured(fake)
    assert speed.done == 10
    assert speed.new_tokens == sum(body["max_tokens"] for body in fake.bodies[1:])


def test_servers_without_usage_are_counted_by_events() -> None:
    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "stream_options" in body:
            return await send_json(writer, 400, {"error": {"message": "unknown field 'stream_options'"}})
        await fake.answer(body, writer)

    refuses, ignores = Fake(respond), Fake()
    ignores.has_usage = False
    for fake in (refuses, ignores):
        speed = measured(fake, words=WORDS)
        bodies = fake.bodies[-10:]
        assert (speed.done, speed.prompt_tokens) == (10, None)
        assert speed.new_tokens == sum(body["max_tokens"] for body in bodies)
        assert all("stream_options" not in body for body in bodies)
        assert all(4 <= len(body["prompt"].split()) <= 20 for body in bodies)  # a word counts as a token


def test_a_server_that_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    async def respond(fake: Fake, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await send_json(writer, 400, {"error": {"message": "the prompt is too long"}})

    with pytest.raises(UserError, match=r"http://\S+ cannot be measured: status 400: the prompt is too long"):
        measured(Fake(respond))
    nobody = Load(address_of("http://127.0.0.1:9"), ranges((1, 1), (1, 1)), rate=1, requests=1)
    with pytest.raises(UserError, match=r"cannot be measured: cannot connect to 127.0.0.1 on port 9 \("):
        asyncio.run(LoadGenerator(nobody, lambda *given: None).run())


def test_key_and_model_are_sent() -> None:
    async def run() -> Fake:
        async with listening(Fake()) as fake:
            address = address_of(fake.address.url, "sesame")
            load = Load(address, ranges((1, 1), (1, 1)), rate=100, requests=1, model="mine")
            await LoadGenerator(load, lambda *given: None).run()
            return fake

    fake = asyncio.run(run())
    assert [body["model"] for body in fake.bodies] == ["mine"] * 2
    assert all(b"\r\nAuthorization: Bearer sesame\r\n" in head for head in fake.requests)


def test_addresses() -> None:
    for url in ("http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"):
        address = address_of(url)
        assert (address.host, address.port, address.path, address.is_encrypted) == ("h", 8000, "/v1", False)
    assert (address_of("https://h/a/v1").port, address_of("https://h/a").path) == (443, "/a/v1")
    assert address_of("http://[::1]:5").host == "::1"
    for url in (
        "",
        "h:8000",
        "ftp://h",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://a b",
        "http://é",
        "http://[",
    ):
        with pytest.raises(UserError, match="is no address of a server"):
            address_of(url)
    with pytest.raises(UserError, match="the API key has characters that a header cannot hold"):
        address_of("http://h", "a\x01b")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere --rate=1", "'nowhere' is no address of a server"),
        ("http://127.0.0.1:9", "give either --rate"),
        ("http://127.0.0.1:9 --rate=1 --concurrency=1", "give either --rate"),
        ("http://127.0.0.1:9 --rate=1 --requests=1 --seconds=1", "give either --requests or --seconds"),
        ("http://127.0.0.1:9 --rate=1 --prompt_kind=text", "prompts of text need --text FILE"),
        ("http://127.0.0.1:9 --rate=1 --cancel=2", "cancel is 2"),
        ("http://127.0.0.1:9 --rate=nan", "rate is nan"),
        ("http://127.0.0.1:9 --rate=1 --prompt_tokens 0 5", "prompt_tokens is 0"),
        ("http://127.0.0.1:9 --rate=1 --prompt_tokens 6 5", "prompt_tokens is 6 5"),
        (
            "http://127.0.0.1:9 --rate=1",
            "http://127.0.0.1:9 cannot be measured: cannot connect to 127.0.0.1 on port 9",
        ),
    ],
)
def test_wrong_command_lines(gpt2_command: Callable[..., tuple[int, str, str]], line: str, message: str) -> None:
    status, out, err = gpt2_command("bench", "serve", *line.split())
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_command_measures_our_server(gpt2_command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    from serve.conftest import running

    (tmp_path / "text.txt").write_text(" ".join(WORDS))
    lengths = ["--prompt_tokens", "8", "30", "--new_tokens", "4", "12"]
    with running() as one:
        words = ["bench", "serve", one.address, *lengths, f"--text={tmp_path / 'text.txt'}"]
        status, out, err = gpt2_command(*words, "--concurrency=3", "--requests=12", "--cancel=0.3", "--json")
        assert status == 0, err
        speed = json.loads(out)
        assert speed["done"] + speed["cancelled"] == 12
        assert speed["failed"] == 0
        assert set(speed["whole"]) == {"p50", "p95", "p99"}
        assert speed["prompt_tokens"] > 0
        assert one.becomes(lambda: one.is_empty)
        status, out, err = gpt2_command(*words, "--rate=50", "--requests=5", "--prompt_kind=ids", "--vocab_size=200")
        assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("tiny: 5 done, 0 cancelled, 0 failed in ")
    assert [line.split("  ")[0] for line in lines[3:6]] == ["time to first token", "time per token", "whole time"]
    assert lines[-1].startswith("tokens as counted by the server; ")


def test_a_model_of_characters_needs_its_own_prompts(
    gpt2_command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """The random ids that a server gets by default are GPT-2's; the message says what to give instead."""
    from generation.models import random_model
    from serve.conftest import running

    text = tmp_path / "text.txt"
    text.write_text(" ".join(WORDS))
    tokenizer = CharTokenizer.train(text.read_text())
    with running(network=random_model(tokenizer.vocab_size, 128), tokenizer=tokenizer) as one:
        words = ["bench", "serve", one.address, "--concurrency=2", "--requests=4", "--new_tokens", "2", "4"]
        status, _, err = gpt2_command(*words)
        assert status == 2 and err.count("\n") == 1
        assert "there is no token" in err and err.endswith("with --vocab_size or --text\n")
        for choice in (f"--vocab_size={tokenizer.vocab_size}", f"--text={text}"):
            status, out, err = gpt2_command(*words, "--prompt_tokens", "4", "40", choice)
            assert status == 0 and out.startswith("tiny: 4 done, 0 cancelled, 0 failed in "), err + out
