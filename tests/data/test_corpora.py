"""Corpora by name, downloaded from a stand-in on this machine that speaks the protocol of Hugging Face's hub."""

import fnmatch
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gpt2.cli import prepare as prepare_command
from gpt2.data.corpora import CORPORA, HubFiles
from gpt2.data.dataset import open_dataset

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "dogs", "run", "over", "some", "hill"]


class Hub(BaseHTTPRequestHandler):
    """Serves files of datasets; breaks off in the middle of some, and refuses others."""

    files: dict[str, bytes]
    """By repository and path."""
    drops: dict[str, int]
    refused: set[str]
    requests: list[tuple[str, str]]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)/tree/(\w{40})/(.+)", path):
            repo, self.revision, folder = match.groups()
            names = [n.removeprefix(f"{repo}/") for n in self.files if n.startswith(f"{repo}/{folder}/")]
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(self.files[f"{repo}/{name}"]),
                    "oid": "0" * 40,
                    "lfs": {"oid": etag(self.files[f"{repo}/{name}"]), "size": 0, "pointerSize": 100},
                }
                for name in names
            ]
            self.reply(json.dumps([*tree, {"type": "directory", "path": f"{folder}/x", "oid": "0" * 40}]).encode())
        elif match := re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)/revision/(\w{40})", path):
            self.reply(json.dumps({"id": match[1], "sha": match[2]}).encode())
        elif match := re.fullmatch(r"/datasets/([\w-]+/[\w-]+)/resolve/(\w{40})/(.+)", path):
            self.file(f"{match[1]}/{match[3]}", match[2], body)
        else:
            self.send_error(404)

    def reply(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def file(self, name: str, revision: str, body: bool) -> None:
        if name in self.refused:
            self.send_error(403)
            return
        data = self.files[name]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or ["", "0"])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("X-Repo-Commit", revision)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body and self.drops.get(name, 0) > 0:
            self.drops[name] -= 1
            self.wfile.write(data[start : start + len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data[start:])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": range(len(texts))}), out)
    return out.getvalue()


STORIES = {
    f"roneneldan/TinyStories/data/{name}-abc.parquet": parquet(texts)
    for name, texts in {
        "train-00000-of-00002": [f"{WORDS[i % 13]} number {i}" for i in range(300)],
        "train-00001-of-00002": [f"{WORDS[i % 13]} again {i}" for i in range(200)],
        "validation-00000-of-00001": [f"{WORDS[i % 13]} held out {i}" for i in range(50)],
    }.items()
}
ARTICLES = [
    ["", " = Cats = \n", "", " A cat is an animal . \n", " = = Food = = \n", " It eats . \n", ""],
    [" = Dogs = \n", " A dog is one too . \n"],
]


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    wikitext = {
        f"Salesforce/wikitext/wikitext-103-raw-v1/{name}.parquet": parquet([line for a in articles for line in a])
        for name, articles in {
            "train-00000-of-00001": ARTICLES,
            "validation-00000-of-00001": ARTICLES[1:],
            "test-00000-of-00001": ARTICLES[1:],
        }.items()
    }
    fineweb = {
        f"HuggingFaceFW/fineweb-edu/sample/10BT/{i:03d}_00000.parquet": parquet(["page"] * 9) for i in range(3)
    }
    other = {"HuggingFaceFW/fineweb-edu/sample/10BT/README.md": b"not text"}
    state = {"files": {**STORIES, **wikitext, **fineweb, **other}, "drops": {}, "refused": set(), "requests": []}
    handler = type("Serving", (Hub,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`gpt2 prepare` as a process of its own, because the hub's client reads its environment once."""

    def run(endpoint: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpt2", "prepare", *arguments],
            cwd=tmp_path,
            env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), **settings},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def texts(folder: Path, split: str) -> list[str]:
    data = open_dataset(str(folder))
    return data.tokenizer.decode(data.splits[split][:].tolist()).split("<|endoftext|>")[:-1]


def test_stories_are_tokenised_file_by_file(hub: type[Hub], command, tmp_path: Path) -> None:
    done = command(hub.endpoint, "tinystories", "--tokenizer=byte")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "data" / "tinystories"
    train = [f"{WORDS[i % 13]} number {i}" for i in range(300)] + [f"{WORDS[i % 13]} again {i}" for i in range(200)]
    assert texts(out, "train") == train
    assert texts(out, "val") == [f"{WORDS[i % 13]} held out {i}" for i in range(50)]
    assert sorted(p.name for p in out.iterdir()) == [
        "dataset.json",
        "train.bin",
        "val.bin",
    ]  # nothing downloaded stays
    revision = {path.split("/")[5] for command, path in hub.requests if command == "GET" and "resolve" in path}
    assert revision == {"f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"}


def test_rows_of_wikitext_are_joined_to_articles(hub: type[Hub], command, tmp_path: Path) -> None:
    done = command(hub.endpoint, "wikitext-103", "--tokenizer=byte", "--out=w")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "w", "train") == ["".join(article) for article in ARTICLES]
    assert texts(tmp_path / "w", "val") == ["".join(ARTICLES[1])]


def test_names_and_splits_are_those_of_each_project(hub: type[Hub], command, tmp_path: Path) -> None:
    options = ("--tokenizer=byte", "--val_tokens=10", "--shard_size=40")
    for format, names in {
        "llmc": ["edu_fineweb_train_000001.bin", "edu_fineweb_val_000000.bin"],
        "npy": ["edufineweb_train_000001.npy", "edufineweb_val_000000.npy"],
    }.items():
        done = command(hub.endpoint, "fineweb-edu", f"--format={format}", f"--out={format}", *options)
        assert done.returncode == 0, done.stderr
        assert set(names) <= {p.name for p in (tmp_path / format).iterdir()}
    found = np.concatenate([np.load(p) for p in sorted((tmp_path / "npy").glob("*_train_*"))])
    stream = [256, *b"page"] * 27
    assert found.tolist() == stream[10:]


def test_a_connection_that_breaks_is_taken_up_again(hub: type[Hub], command, tmp_path: Path) -> None:
    name = next(iter(STORIES))
    hub.drops[name] = 1
    done = command(hub.endpoint, "tinystories", "--tokenizer=byte", "--out=a")
    assert done.returncode == 0, done.stderr
    assert len(texts(tmp_path / "a", "train")) == 500


def test_a_file_that_cannot_be_had_loses_nothing(hub: type[Hub], command, tmp_path: Path) -> None:
    undisturbed = command(hub.endpoint, "tinystories", "--tokenizer=byte", "--out=undisturbed")
    assert undisturbed.returncode == 0
    _, second = (n for n in STORIES if "train" in n)
    hub.refused.add(second)
    failed = command(hub.endpoint, "tinystories", "--tokenizer=byte", "--out=b")
    assert failed.returncode == 2
    last = failed.stderr.splitlines()[-1]
    assert re.match(
        rf"gpt2: data/train-00001\S* of roneneldan/TinyStories cannot be downloaded from {hub.endpoint}", last
    )
    assert last.endswith("run the same command again: it goes on from here")
    hub.refused.clear()
    done = command(hub.endpoint, "tinystories", "--tokenizer=byte", "--out=b")
    assert done.returncode == 0, done.stderr
    for file in ("train.bin", "val.bin"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()


def test_a_damaged_download_is_refused(hub: type[Hub], command, tmp_path: Path, monkeypatch) -> None:
    name = next(iter(STORIES))
    wrong = bytearray(STORIES[name])
    wrong[50] ^= 1
    right = etag(STORIES[name])
    monkeypatch.setattr(sys.modules[__name__], "etag", lambda data: right)
    hub.files = hub.files | {name: bytes(wrong)}
    done = command(hub.endpoint, "tinystories", "--tokenizer=byte", "--out=a")
    assert done.returncode == 2
    assert "arrived damaged" in done.stderr.splitlines()[-1]


def test_a_copy_of_the_repository_needs_no_network(command, tmp_path: Path) -> None:
    for name, data in STORIES.items():
        path = tmp_path / "copy" / name.removeprefix("roneneldan/TinyStories/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    done = command("http://127.0.0.1:9", "tinystories", "--tokenizer=byte", "--from=copy", "--out=a")
    assert done.returncode == 0, done.stderr
    assert len(texts(tmp_path / "a", "train")) == 500
    assert len(list((tmp_path / "copy" / "data").iterdir())) == 3
    done = command("http://127.0.0.1:9", "fineweb", "--from=copy", "--out=b")
    assert done.returncode == 2
    assert "--from=copy has no files like sample/10BT/*.parquet" in done.stderr


def test_without_network_one_line_says_what_can_be_done(command, tmp_path: Path) -> None:
    done = command("http://127.0.0.1:9", "openwebtext", "--tokenizer=byte")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("gpt2: Hugging Face's hub at http://127.0.0.1:9 does not list Skylion007/openwebtext (")
    assert line.endswith("fetch its files elsewhere and give their folder with --from")
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_is_not_made_from_what_is_read_once(hub: type[Hub], command) -> None:
    done = command(hub.endpoint, "tinystories", "--tokenizer=bpe")
    assert done.returncode == 2
    assert "tinystories is read only once, too rarely to make a bpe tokenizer" in done.stderr


def test_the_table_is_consistent() -> None:
    for name, corpus in CORPORA.items():
        files = getattr(corpus.inputs, "__self__", None)
        assert corpus.is_large == isinstance(files, HubFiles), name
        if isinstance(files, HubFiles):
            assert re.fullmatch(r"[0-9a-f]{40}", files.revision), name
            assert all(fnmatch.fnmatch(p.replace("*", "00000"), p) for p in files.splits.values()), name
            assert files.size > 1e8, name


def test_the_documentation_lists_all(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "docs" / "data.md").read_text()
    for name, corpus in CORPORA.items():
        [row] = [line for line in text.splitlines() if line.startswith("| `") and f"`{name}`" in line]
        if isinstance(files := getattr(corpus.inputs, "__self__", None), HubFiles):
            assert files.repo in row
            gigabytes = files.size / 1e9
            assert f"{gigabytes:.{0 if gigabytes > 2 else 1}f} GB" in row
    described = " ".join((prepare_command.__doc__ or "").split())
    assert ", ".join(CORPORA) in described
