"""Requests that are refused: the status, the field that is named, and what is said."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from generation.models import random_model
from serve.conftest import Running, running

from gpt2.errors import UserError
from gpt2.generation.request import Request
from gpt2.serve import guard
from gpt2.serve.errors import ApiError
from gpt2.serve.guard import checked_origins

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "x"}]
REFUSED = [
    (COMPLETIONS, {"promt": "x"}, "promt", "did you mean 'prompt'?"),
    ("/inside/page", {"text": "ab", "compare_step": 3}, "compare_step", "needs compare"),
    (COMPLETIONS, {"something": 1}, "something", "unknown field"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt", "wrong type or value"),
    (COMPLETIONS, {"prompt": []}, "prompt", "empty list"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt", "no tokens"),
    (COMPLETIONS, {"prompt": [[1], [300]]}, "prompt", "no token 300"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt", "wrong type or value"),
    (COMPLETIONS, {"prompt": "x" * 200}, "prompt", "context is 128"),
    (COMPLETIONS, {"max_tokens": 200}, "prompt", "context is 128"),
    (COMPLETIONS, {"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    (COMPLETIONS, {"max_tokens": "5"}, "max_tokens", "integer"),
    (COMPLETIONS, {"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    (COMPLETIONS, {"temperature": 1e-5}, "temperature", "0.001"),
    (COMPLETIONS, {"top_p": 0}, "top_p", "greater than 0"),
    (COMPLETIONS, {"n": 0}, "n", "greater than or equal to 1"),
    (COMPLETIONS, {"n": 128}, "n", "at most 68"),
    (COMPLETIONS, {"n": 3, "best_of": 2}, "best_of", "at least n"),
    (COMPLETIONS, {"best_of": 2, "stream": True}, "best_of", "cannot be streamed"),
    (COMPLETIONS, {"suffix": "x"}, "suffix", "insert"),
    (COMPLETIONS, {"stop": ["a"] * 17}, "stop", "wrong type or value"),
    (COMPLETIONS, {"stop": ["a", ""]}, "stop", "none of them is empty"),
    (COMPLETIONS, {"stop": ""}, "stop", "none of them is empty"),
    (CHAT, {"messages": USER, "stop": ""}, "stop", "none of them is empty"),
    (COMPLETIONS, {"logit_bias": {"300": 1}}, "logit_bias", "no token 300"),
    (COMPLETIONS, {"logit_bias": {"3": 101}}, "logit_bias", "less than or equal to 100"),
    (COMPLETIONS, {"logit_bias": {"a": 1}}, "logit_bias", "integer"),
    (COMPLETIONS, {"seed": -1}, "seed", "greater than or equal to 0"),
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    (COMPLETIONS, {"stream_options": {"x": 1}}, "stream_options", "unknown field 'stream_options.x'; remove it"),
    (COMPLETIONS, {"logprobs": True}, "logprobs", "integer"),
    (COMPLETIONS, {"model": 5}, "model", "string"),
    (CHAT, {}, "messages", "missing"),
    (CHAT, {"messages": []}, "messages", "at least 1"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages", "no role wizard"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages", "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "must be of type text"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages", "have a text"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    (CHAT, {"messages": USER, "max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens", "the same"),
    (CHAT, {"messages": USER, "max_tokens": 500}, "messages", "context is 128"),
    ("/tokenize", {}, "prompt", "missing"),
    ("/detokenize", {"tokens": [300]}, "tokens", "no token 300"),
]


@pytest.mark.parametrize(("path", "fields", "param", "message"), REFUSED)
def test_a_wrong_field_is_named(tiny: Running, path: str, fields: dict[str, Any], param: str, message: str) -> None:
    answer = tiny.post(path, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert message in error["message"] and "\n" not in error["message"]
    assert tiny.is_empty


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 10_000, b'{"model": "tiny", "prompt": "\\ud800"}']
)
def test_a_body_that_is_no_json_object_is_refused(tiny: Running, content: bytes) -> None:
    answer = httpx.post(tiny.address + COMPLETIONS, content=content)
    assert answer.status_code == 400 and "body" in answer.json()["error"]["message"]


def test_the_official_client_raises_its_own_errors(tiny: Running) -> None:
    client = openai.OpenAI(base_url=f"{tiny.address}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt="x")
    assert missing.value.code == "model_not_found" and "there is tiny" in str(missing.value)
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt="x" * 500)
    assert long.value.code == "context_length_exceeded"
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_request_that_the_engine_refuses_does_not_reach_its_thread(tiny: Running) -> None:
    decoder = tiny.api.models["tiny"].decoder
    with pytest.raises(ApiError, match="the prompt has the token id 9999"):
        decoder.submit([Request([1], 1), Request([9999], 1)])
    assert not decoder.incoming and not decoder.streams


def test_a_model_without_a_template_has_no_conversations() -> None:
    with running() as one:
        answer = one.post(CHAT, messages=USER)
    assert answer.status_code == 400 and "/v1/completions" in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_are_errors_in_the_same_form(tiny: Running) -> None:
    assert httpx.get(f"{tiny.address}/nothing").json()["error"]["message"] == "GET /nothing: Not Found"
    answer = httpx.get(tiny.address + COMPLETIONS)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST" and answer.json()["error"]


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    """A server that needs a key, and whose pages another site may use."""
    with running(api_key="sesame", hosts=None, origins=["https://friend.example"]) as one:
        yield one


def test_a_key_is_needed_except_for_health(locked: Running) -> None:
    client = openai.OpenAI(base_url=f"{locked.address}/v1", api_key="sesam", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as wrong:
        client.models.list()
    assert wrong.value.code == "invalid_api_key" and "sesam" not in str(wrong.value)
    assert [m.id for m in openai.OpenAI(base_url=f"{locked.address}/v1", api_key="sesame").models.list()] == ["tiny"]
    for value in ("sesame", "Basic sesame", "Bearer", "Bearer sesamé"):
        headers = {"Authorization": value.encode()}
        assert httpx.get(f"{locked.address}/metrics", headers=headers).status_code == 401
    assert httpx.get(f"{locked.address}/health").json() == {"status": "ok"}
    assert not any("sesame" in line for line in locked.lines)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:80"])
def test_another_host_name_is_refused(tiny: Running, host: str) -> None:
    """A name that leads here belongs to another site, whose page could read the answers (DNS rebinding)."""
    assert httpx.get(f"{tiny.address}/v1/models", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", "[::1]"])
def test_the_names_of_this_machine_are_accepted(tiny: Running, host: str) -> None:
    assert httpx.get(f"{tiny.address}/v1/models", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites_are_refused_unless_they_are_allowed(tiny: Running, locked: Running) -> None:
    def answer(one: Running, origin: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{one.address}/v1/models", headers={"Origin": origin} | headers)

    assert answer(tiny, "https://evil.example").status_code == 403
    assert answer(tiny, "null").status_code == 403
    assert answer(tiny, tiny.address).status_code == 200
    assert "access-control-allow-origin" not in answer(tiny, tiny.address).headers
    key = {"Authorization": "Bearer sesame"}
    allowed = answer(locked, "https://friend.example", **key)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://friend.example")
    assert answer(locked, "https://evil.example", **key).status_code == 403
    assert allowed.headers["access-control-expose-headers"] == "Retry-After"
    sent = "authorization,content-type,x-stainless-lang,x-stainless-os"  # by OpenAI's client in a browser
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": sent}
    preflight = httpx.options(locked.address + COMPLETIONS, headers=asked | {"Origin": "https://friend.example"})
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (200, sent)
    assert httpx.options(locked.address + COMPLETIONS, headers=asked | {"Origin": "https://a.example"}).is_error


def test_a_star_allows_the_pages_of_any_site() -> None:
    with running(origins=checked_origins(["*"])) as one:
        answer = httpx.get(f"{one.address}/v1/models", headers={"Origin": "https://any.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        evil = {"Origin": "https://any.example", "Host": "evil.example"}
        assert httpx.get(f"{one.address}/v1/models", headers=evil).status_code == 403


def test_an_origin_is_a_scheme_and_a_host() -> None:
    known = ["*", "https://Example.org", "http://localhost:3000", "http://[::1]:8000", "chrome-extension://abc"]
    assert checked_origins(known) == [one.lower() for one in known]
    assert checked_origins(["https://A.org:443", "http://a.org:80"]) == ["https://a.org", "http://a.org"]
    assert checked_origins(["https://a.org:80", "http://[::1]:443"]) == ["https://a.org:80", "http://[::1]:443"]
    for wrong in (
        *("foo", "", "null", "example.org", "example.org:80", "https://", "https://*.example.org", "*://example.org"),
        *("https://example.org/", "https://example.org/path", "https://me@example.org", "https://example.org:port"),
        *("https://a.example,https://b.example", "https://example.org\n"),
    ):
        with pytest.raises(UserError, match="is no origin"):
            checked_origins([wrong])


def test_a_large_body_is_refused_before_it_is_read(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_BYTES", 1000)
    assert tiny.post(prompt="x" * 2000).status_code == 413

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    assert httpx.post(tiny.address + COMPLETIONS, content=parts()).status_code == 413


def test_a_body_that_does_not_arrive_is_given_up(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    host, port = tiny.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_the_description_names_every_route(tiny: Running) -> None:
    described = httpx.get(f"{tiny.address}/openapi.json").json()
    paths = {(path, method) for path, entry in described["paths"].items() for method in entry}
    from gpt2.serve.app import Api

    routes = Api([tiny.served], 1.0, print).routes()
    found = {
        (route.path.replace(":path", ""), m.lower()) for route in routes for m in (route.methods or ()) - {"HEAD"}
    }
    assert paths == found
    schema = described["components"]["schemas"]["CompletionBody"]
    assert schema["properties"]["model"]["enum"] == ["tiny", None]  # it may be omitted
    assert "model" not in schema.get("required", ())
    assert schema["additionalProperties"] is False and schema["properties"]["top_p"]["maximum"] == 1


def test_the_model_may_be_omitted_where_one_is_served(tiny: Running) -> None:
    fields = {"prompt": "a", "max_tokens": 2}
    answer = httpx.post(tiny.address + COMPLETIONS, json=fields)
    assert answer.status_code == 200 and answer.json()["model"] == "tiny"
    with running(others={"other": random_model()}) as two:
        answer = httpx.post(two.address + COMPLETIONS, json=fields)
        described = httpx.get(f"{two.address}/openapi.json").json()["components"]["schemas"]
    message = "the field 'model' is missing; it is one of tiny, other"
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)
    assert all("model" in body["required"] for body in described.values() if "model" in body.get("properties", ()))


def test_null_means_the_default(tiny: Running) -> None:
    fields = {"prompt": "ab", "max_tokens": 4, "seed": 3, "logit_bias": {"3": 1.5}}
    nulls = dict.fromkeys(("temperature", "top_p", "n", "stream", "echo", "presence_penalty", "stop", "user"))
    expected, found = (tiny.post(**fields, **more) for more in ({}, nulls))
    assert found.status_code == 200 and found.json()["choices"] == expected.json()["choices"]
    assert tiny.post(**fields, nothing=None).json()["error"]["message"].startswith("unknown field 'nothing'")


def test_an_empty_suffix_changes_nothing(tiny: Running) -> None:
    """Clients that complete code send one where nothing follows."""
    texts = [tiny.post(seed=1, **more).json()["choices"][0]["text"] for more in ({"suffix": ""}, {})]
    assert texts[0] == texts[1]


def test_an_empty_list_stops_nothing(tiny: Running) -> None:
    """Some clients always send the list."""
    fields = {"prompt": "ab", "max_tokens": 4, "seed": 3}
    expected, found = (tiny.post(**fields, **more) for more in ({}, {"stop": []}))
    assert found.status_code == 200 and found.json()["choices"] == expected.json()["choices"]


def test_metrics_count(locked: Running) -> None:
    headers = {"Authorization": "Bearer sesame"}

    def values() -> dict[str, float]:
        lines = httpx.get(f"{locked.address}/metrics", headers=headers).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    before = values()
    greedy = {"prompt": "abc", "max_tokens": 5, "temperature": 0}  # a random text may end earlier
    for fields in (greedy, {"prompt": "x", "n": 0}):
        httpx.post(locked.address + COMPLETIONS, headers=headers, json={"model": "tiny"} | fields, timeout=60)
    after = values()
    changed = {name: after[name] - before.get(name, 0) for name in after if "created" not in name}
    assert changed['gpt2_prompt_tokens_total{model="tiny"}'] == 3
    assert changed['gpt2_new_tokens_total{model="tiny"}'] == 5
    assert changed['gpt2_time_to_first_token_seconds_count{model="tiny"}'] == 1
    assert changed['gpt2_requests_total{endpoint="/v1/completions",status="200"}'] == 1
    assert changed['gpt2_requests_total{endpoint="/v1/completions",status="400"}'] == 1
    assert after['gpt2_used_slots{model="tiny"}'] == 0 and after['gpt2_slots{model="tiny"}'] == 4
