"""What a server says about the inside of its models: the figures of `gpt2.inside`, queues, and refusals."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from generation.models import random_model
from serve.conftest import Running, running

from gpt2.generation.weights import for_decoding
from gpt2.inside.attention import attention_weights
from gpt2.inside.patching import patch
from gpt2.inside.predictions import logit_lens, losses
from gpt2.serve import inside
from gpt2.serve.inside import MOST_WAITING, Reader

TEXT, AGAINST = "the dög saw <|endoftext|>a cat", "the cät saw <|endoftext|>a dog"


def unpacked(value: Any) -> Any:
    """Packed arrays as tensors."""
    if not isinstance(value, dict):
        return value
    if "base64" not in value:
        return {key: unpacked(inner) for key, inner in value.items()}
    content = np.frombuffer(base64.b64decode(value["base64"]), np.dtype(value["dtype"]).newbyteorder("<"))
    return torch.tensor(content.reshape(value["shape"]).copy())


def ids_of(one: Running, text: str) -> torch.Tensor:
    return torch.tensor(one.post("/tokenize", prompt=text).json()["tokens"])


def test_read_returns_the_losses(tiny: Running) -> None:
    found, idx = unpacked(tiny.post("/inside/read", text=TEXT).json()), ids_of(tiny, TEXT)
    own = losses(tiny.network, idx)
    assert found["ids"] == idx.tolist() and 256 in found["ids"] and found["model"] == "tiny"
    torch.testing.assert_close(found["losses"]["loss"], own.loss)
    torch.testing.assert_close(found["losses"]["entropy"], own.entropy)
    assert found["losses"]["rank"].tolist() == own.rank.tolist()
    assert found["losses"]["top_ids"].tolist() == own.top_ids.tolist()
    assert found["mean_loss"] == pytest.approx(float(own.loss.double().mean()))
    assert "attention" not in found and "lens" not in found


def test_an_analysis_is_that_of_the_functions(tiny: Running) -> None:
    found = unpacked(tiny.post("/inside/analysis", text=TEXT, against=AGAINST, answer="x", other="y").json())
    idx, against = ids_of(tiny, TEXT), ids_of(tiny, AGAINST)
    lens = logit_lens(tiny.network, idx)
    torch.testing.assert_close(found["lens"]["kl"], lens.kl, atol=1e-5, rtol=1e-4)
    assert found["lens"]["top_ids"].tolist() == lens.layers.top_ids.tolist()
    weights = attention_weights(tiny.network, idx[None])[:, 0]
    rows, columns = np.tril_indices(len(idx))
    assert found["attention"]["weights"].tolist() == (weights[:, :, rows, columns] * 255).round().int().tolist()
    patched = patch(tiny.network, idx, against, ord("x"), ord("y"))
    torch.testing.assert_close(found["patching"]["streams"], patched.streams, atol=1e-5, rtol=1e-4)
    assert found["patching"]["answer"] == ord("x") and found["patching"]["clean"] == pytest.approx(patched.clean)
    assert "patching" not in tiny.post("/inside/analysis", text=TEXT).json()


def test_a_stream_reports_progress_and_ends_with_the_analysis(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "PROGRESS_SECONDS", 0.0)
    lines = tiny.post("/inside/analysis", text="streamed", stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lines[-2] == "data: [DONE]"
    reports = [event["progress"] for event in events[:-1]]
    assert [r["part"] for r in reports] == ["losses", "positions of the lens"]
    assert reports[-1]["done"] == reports[-1]["total"] == len("streamed")
    assert events[-1] == tiny.post("/inside/analysis", text="streamed").json()


def test_the_page_is_that_of_gpt2_lens(tiny: Running) -> None:
    answer = tiny.post("/inside/page", text="<script>alert(1)</script>")
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.count("<script") == 2 and "alert(1)</script>" not in answer.text
    text = answer.text.partition("<script type=application/json id=data>")[2].partition("</script>")[0]
    found = unpacked(json.loads(text))
    own = losses(tiny.network, torch.tensor(list(b"<script>alert(1)</script>")))
    torch.testing.assert_close(found["losses"]["loss"], own.loss)


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        ("read", {}, "text", "missing"),
        ("read", {"text": "a"}, "text", "at least 2 are needed"),
        ("read", {"text": "a" * 200}, "text", "the model sees 128"),
        ("read", {"text": "ab", "against": "ba"}, "against", "unknown field"),
        ("analysis", {"text": "ab", "against": "abc"}, "against", "2 and 3 tokens"),
        ("analysis", {"text": "ab", "against": "ba", "answer": "xy"}, "answer", "2 tokens"),
        ("analysis", {"text": "ab", "against": "ab"}, None, "the same tokens"),
        ("page", {"text": 5}, "text", "string"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tiny: Running, path: str, fields: dict[str, Any], param: str | None, message: str
) -> None:
    answer = tiny.post(f"/inside/{path}", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert message in answer.json()["error"]["message"]
    assert tiny.post(f"/inside/{path}", model="other", text="ab").status_code == 404


def test_weights_that_are_not_plain_are_not_read() -> None:
    with running(network=for_decoding(random_model(block_size=32), quantize="int8")) as one:
        answer = one.post("/inside/read", text="some text")
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_plain_weights"
        assert "without --dtype and --quantize" in answer.json()["error"]["message"]
        assert httpx.get(f"{one.address}/v1/models").json()["data"][0]["inside"] is False
        assert one.post(max_tokens=3).status_code == 200


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds up every analysis until the event is set, or until nobody wants it."""
    free, analysis = threading.Event(), Reader._analysis

    def wait(self: Reader, ids: list[int], report: Any, step: int | None) -> Any:
        while not free.wait(0.005):
            report("held", 1, 1)
        return analysis(self, ids, report, step)

    monkeypatch.setattr(Reader, "_analysis", wait)
    yield free
    free.set()


def test_few_texts_wait_and_the_decoder_goes_on(held: threading.Event) -> None:
    with running() as one:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(one.post("/inside/read", text="ab").status_code))
            for _ in range(1 + MOST_WAITING)
        ]
        reader = one.api.readers["tiny"]
        for thread in threads:
            thread.start()
        assert one.becomes(lambda: len(reader.jobs) == 1 + MOST_WAITING)
        full = one.post("/inside/read", text="ab")
        assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(full.headers["retry-after"]) >= 1
        assert one.post(max_tokens=3).status_code == 200
        held.set()
        for thread in threads:
            thread.join(20)
        assert answers == [200] * (1 + MOST_WAITING)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_analysis(held: threading.Event, stream: bool) -> None:
    with running() as one:
        reader = one.api.readers["tiny"]
        for _ in range(2):  # one that is computed, one that waits
            asked = {"url": f"{one.address}/inside/analysis", "json": {"text": "ab", "stream": stream}}
            if stream:
                with httpx.stream("POST", **asked):
                    pass
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(**asked, timeout=0.3)
        assert one.becomes(lambda: all(job.future and job.future.done() for job in reader.jobs))
        assert reader.last is None


def test_the_end_of_the_server_ends_an_analysis(held: threading.Event) -> None:
    with running(grace=0.1) as one:
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(one.post("/inside/read", text="ab")))
        thread.start()
        assert one.becomes(lambda: bool(one.api.readers["tiny"].jobs))
        one.server.should_exit = True
        thread.join(20)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "server_stops")


def test_the_decoder_and_an_analysis_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are computed in the middle of an analysis, whose hooks would see them in the decoder's modules."""
    network, between = random_model(block_size=64), list[int]()
    with running(network=network) as one:
        reader = one.api.readers["tiny"]
        block = reader.network.transformer.h[1]
        handle = block.register_forward_pre_hook(
            lambda *_: between.append(one.post(prompt="another text", max_tokens=2).status_code)
        )
        found = unpacked(one.post("/inside/analysis", text="a text to read").json())
        handle.remove()
    assert between and set(between) == {200}
    idx = torch.tensor(list(b"a text to read"))
    torch.testing.assert_close(found["lens"]["kl"], logit_lens(network, idx).kl, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["losses"]["loss"], losses(network, idx).loss)


def test_a_key_is_needed_for_the_figures_and_not_for_the_page() -> None:
    with running(api_key="sesame", hosts=None) as one:
        assert one.post("/inside/read", text="ab").status_code == 401
        for path in ("/", "/page/main.js", "/page/inside/shared.js", "/page/style.css"):
            answer = httpx.get(one.address + path)
            assert answer.status_code == 200, path
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
        assert httpx.get(f"{one.address}/page/../metrics").status_code == 401
        assert httpx.get(f"{one.address}/page/%2e%2e/metrics").status_code == 404
        assert httpx.get(f"{one.address}/page/inside.py").status_code == 404
