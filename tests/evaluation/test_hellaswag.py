"""HellaSwag's tasks are read, rendered and checked: the renderings, the published file, and wrong files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from gpt2.errors import UserError
from gpt2.evaluation import hellaswag
from gpt2.evaluation.choices import choose
from gpt2.evaluation.hellaswag import read_tasks, validation_file
from gpt2.model import GPT, GPTConfig
from gpt2.tokenizers import ByteTokenizer, CharTokenizer, gpt2_tokenizer

BYTES = ByteTokenizer()
WIKIHOW = {
    "ind": 4,
    "activity_label": "Home",
    "ctx_a": "[header] How to fix it [title] Find the leak. [step] Look under the sink.",
    "ctx_b": "then YOU",
    "ctx": "[header] How to fix it [title] Find the leak. [step] Look under the sink. then YOU",
    "split": "val",
    "label": 1,
    "endings": ["call. [step] Wait.", "fix it [title] Done", "sing", "é"],
}
TAG_AT_THE_END = {**WIKIHOW, "ctx_a": "Look. [step]", "ctx_b": "", "ctx": "Look. [step]"}


def write(path: Path, *questions: object) -> Path:
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    return path


def texts(task) -> tuple[str, list[str]]:
    return BYTES.decode(task.context), [BYTES.decode(ending) for ending in task.endings]


def test_build_nanogpt_asks_context_and_ending_unchanged(tmp_path: Path) -> None:
    [task] = read_tasks(write(tmp_path / "h.jsonl", WIKIHOW), BYTES)
    assert texts(task) == (WIKIHOW["ctx"], [" " + ending for ending in WIKIHOW["endings"]])
    assert (task.lengths, task.label) == ([19, 20, 5, 3], 1)  # tokens, here bytes, with the space


def test_lm_eval_asks_without_tags_and_counts_characters(tmp_path: Path) -> None:
    one, two = read_tasks(write(tmp_path / "h.jsonl", WIKIHOW, TAG_AT_THE_END), BYTES, "lm-eval")
    # derived by hand from process_docs: `capitalize` makes other letters small; ` [title]` becomes `. `
    assert texts(one) == (
        "Home: How to fix it. Find the leak. Look under the sink. Then you",
        [" call. Wait.", " fix it. Done", " sing", " é"],
    )
    assert one.lengths == [11, 12, 4, 1]
    assert texts(two) == ("Home: Look.", ["  call. Wait.", "  fix it. Done", "  sing", "  é"])  # a space moves over
    assert two.lengths == [11, 12, 4, 1]


def test_a_file_without_ctx_a_and_ctx_b_is_reported(tmp_path: Path) -> None:
    short = {name: WIKIHOW[name] for name in ("ind", "activity_label", "ctx", "label", "endings")}
    lines: list[str] = []
    tasks = read_tasks(write(tmp_path / "h.jsonl", short, short), BYTES, "lm-eval", log=lines.append)
    assert BYTES.decode(tasks[0].context) == "Home: How to fix it. Find the leak. Look under the sink. then YOU"
    assert len(lines) == 1
    assert "no ctx_a and ctx_b" in lines[0]


def test_limit_and_labels_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", {**WIKIHOW, "label": "3"}, WIKIHOW, "rubbish")
    assert [task.label for task in read_tasks(path, BYTES, limit=2)] == [3, 1]


WRONG = [
    (b'{"ctx": ', "line 2 is not JSON;"),
    (b"\xff", "line 2 is not JSON;"),
    (b"[]", "line 2 is not a JSON object"),
    (
        json.dumps({k: v for k, v in WIKIHOW.items() if k != "label"}).encode(),
        "line 2 has no label; the test tasks",
    ),
    (b'{"label": 0}', "line 2 has no ctx and no endings"),
    (json.dumps({**WIKIHOW, "label": 4}).encode(), "line 2: label is 4; it must be 0 to 3"),
    (json.dumps({**WIKIHOW, "label": -1}).encode(), "line 2: label is -1"),
    (json.dumps({**WIKIHOW, "label": True}).encode(), "line 2: label is True"),
    (json.dumps({**WIKIHOW, "label": "x"}).encode(), "line 2: label is 'x'"),
    (json.dumps({**WIKIHOW, "endings": ["one"]}).encode(), "line 2: ctx must be text, and endings a list"),
    (json.dumps({**WIKIHOW, "endings": [1, 2]}).encode(), "line 2: ctx must be text, and endings a list"),
    (json.dumps({**WIKIHOW, "ctx": 5}).encode(), "line 2: ctx must be text"),
    (json.dumps({**WIKIHOW, "ctx": ""}).encode(), "line 2: the context or an ending is empty"),
]


@pytest.mark.parametrize(("line", "message"), WRONG)
def test_a_wrong_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(json.dumps(WIKIHOW).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        read_tasks(path, BYTES)
    assert str(error.value).startswith(f"{path}, {message}")


def test_an_ending_of_tags_alone_has_no_length(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", {**WIKIHOW, "endings": ["[step]", "a"]})
    with pytest.raises(UserError, match="line 1: the context or an ending is empty"):
        read_tasks(path, BYTES, "lm-eval")


def test_a_wrong_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    path = write(tmp_path / "h.jsonl", WIKIHOW)
    for file, tokenizer, limit, message in [
        (tmp_path / "nowhere", BYTES, None, "no file"),
        (tmp_path, BYTES, None, "no file"),
        (tmp_path / "empty", BYTES, None, "is empty"),
        (path, BYTES, 0, "limit is 0"),
        (path, None, None, "brings no tokenizer; name one with --tokenizer"),
        (path, CharTokenizer("abc["), None, "line 1: the text has the character ' '"),
    ]:
        with pytest.raises(UserError, match=message):
            read_tasks(file, tokenizer, limit=limit)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Start a server of the file, and return the list of paths requested from it."""
    content = json.dumps(WIKIHOW).encode() + b"\n"
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(hellaswag, "URL", f"http://127.0.0.1:{server.server_port}/hellaswag_val.jsonl")
    monkeypatch.setattr(hellaswag, "SHA256", hashlib.sha256(content).hexdigest())
    yield requested
    server.shutdown()
    server.server_close()


def test_the_published_file_is_downloaded_once(tmp_path: Path, stand_in: list[str]) -> None:
    lines: list[str] = []
    paths = {validation_file(str(tmp_path / "data"), lines.append) for _ in range(2)}
    assert paths == {tmp_path / "data" / "hellaswag" / "hellaswag_val.jsonl"}
    assert stand_in == ["/hellaswag_val.jsonl"]
    assert len(lines) == 1
    assert len(read_tasks(paths.pop(), BYTES)) == 1


def test_another_file_than_the_published_one_is_refused(
    tmp_path: Path, stand_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hellaswag, "SHA256", "0" * 64)
    with pytest.raises(UserError, match=r"not the expected 0000.*name the file with --data"):
        validation_file(str(tmp_path), print)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_without_network_the_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/hellaswag_val.jsonl")
    with pytest.raises(UserError, match=r"cannot download .* fetch it elsewhere and name the file with --data"):
        validation_file(str(tmp_path), print)


@pytest.fixture(scope="module")
def real(shared_data: Path, gpt2_vocabulary: None) -> Path:
    return shared_data / "hellaswag" / "hellaswag_val.jsonl"


def test_all_tasks_for_validation_are_read(real: Path) -> None:
    tasks = read_tasks(real, gpt2_tokenizer())
    assert len(tasks) == 10_042
    assert texts_of(tasks[0]) == (
        "A man is sitting on a roof. he",
        [
            " is using wrap to wrap a pair of skis.",
            " is ripping level tiles off.",
            " is holding a rubik's cube.",
            " starts pulling up roofing on a roof.",
        ],
    )
    assert tasks[0].label == 3


def texts_of(task) -> tuple[str, list[str]]:
    tokenizer = gpt2_tokenizer()
    return tokenizer.decode(task.context), [tokenizer.decode(ending) for ending in task.endings]


@torch.no_grad()
def test_real_tasks_get_the_choices_of_a_plain_loop(real: Path) -> None:
    """The loop is build-nanogpt's method, one ending at a time, beginning with the text."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=320, n_layer=2, n_head=2, n_embd=32)).eval()
    tokenizer, count = gpt2_tokenizer(), 60
    result = choose(model, read_tasks(real, tokenizer, limit=count), dtype="float32")
    differing = 0
    lines = real.read_text(encoding="utf-8").splitlines()[:count]
    for line, values, chosen in zip(lines, result.log_likelihoods, result.predictions_norm, strict=True):
        question = json.loads(line)
        context = tokenizer.encode(question["ctx"])
        sums, means = [], []
        for ending in question["endings"]:
            tokens = tokenizer.encode(" " + ending)
            ids = torch.tensor([*context, *tokens])
            logits = model.head(model.hidden(ids[None]))[0, len(context) - 1 : -1]
            losses = F.cross_entropy(logits, ids[len(context) :], reduction="none")
            sums.append(-losses.sum().item())
            means.append(losses.mean().item())
        assert values == pytest.approx(sums, rel=1e-5)
        differing += chosen != means.index(min(means))
    assert differing <= 1  # by a tie
