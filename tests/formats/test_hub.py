"""Downloading from Hugging Face's hub, against a stand-in on this machine that speaks its protocol."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from toys import source_of, toy

from gpt2.formats.export import export
from gpt2.tokenizers import gpt2_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DROP_AFTER = 11 << 20
"""More than the client's chunk of 10 MiB, so that it has something to go on from."""


class Hub(BaseHTTPRequestHandler):
    """Serves `folder` as the model `gpt2`; cuts the connection in the middle of a file as often as `drops` says."""

    folder: Path
    drops: dict[str, int]
    refused: set[str]
    requests: list[tuple[str, str, str | None]]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append((self.command, path, self.headers.get("Range")))
        files = sorted(p for p in self.folder.iterdir() if p.is_file())
        if re.fullmatch(r"/api/models/gpt2(/revision/\w+)?", path):
            siblings = [{"rfilename": p.name, "size": p.stat().st_size} for p in files]
            self.json({"id": "gpt2", "modelId": "gpt2", "sha": COMMIT, "siblings": siblings, "private": False})
        elif path.startswith("/api/models/gpt2/tree/"):
            self.json([{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": etag(p)} for p in files])
        elif (match := re.fullmatch(r"/gpt2/resolve/\w+/(.+)", path)) and (self.folder / match[1]).is_file():
            self.file(self.folder / match[1], body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def file(self, path: Path, body: bool) -> None:
        if body and path.name in self.refused:
            self.send_error(503)
            return
        data = path.read_bytes()
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or ["", "0"])[1])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body and self.drops.get(path.name, 0) > 0:
            self.drops[path.name] -= 1
            self.wfile.write(data[start : start + DROP_AFTER])
            self.close_connection = True
        elif body:
            self.wfile.write(data[start:])

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(gpt2_vocabulary: None, tmp_path: Path) -> Iterator[type[Hub]]:
    model = toy(vocab_size=50257, n_embd=64, block_size=64)
    folder = export(source_of(model, gpt2_tokenizer()), "hf", tmp_path / "served", lambda line: None).out
    handler = type("Serving", (Hub,), {"folder": folder, "drops": {}, "refused": set(), "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()


def sample(endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`gpt2 sample gpt2` as a process of its own, because the client reads its environment once."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "gpt2", "sample", "gpt2", "--max_new_tokens=5", "--device=cpu"],
        cwd=home,
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), **environment},
        capture_output=True,
        text=True,
    )


def test_a_model_is_downloaded_once(hub: type[Hub], tmp_path: Path) -> None:
    first = sample(hub.endpoint, tmp_path / "home", TIKTOKEN_CACHE_DIR=str(tmp_path / "nothing"))  # brings its own
    assert first.returncode == 0, first.stderr
    assert "model Hugging Face gpt2" in first.stderr
    fetched = [path for command, path, _ in hub.requests if command == "GET" and path.endswith("model.safetensors")]
    assert len(fetched) == 1
    again = sample(hub.endpoint, tmp_path / "home")
    assert again.stdout == first.stdout
    fetched = [path for command, path, _ in hub.requests if command == "GET" and path.endswith("model.safetensors")]
    assert len(fetched) == 1


def test_a_cut_download_goes_on_where_it_was(hub: type[Hub], tmp_path: Path) -> None:
    hub.drops["model.safetensors"] = 1
    done = sample(hub.endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    ranges = [r for command, path, r in hub.requests if command == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert len(ranges) == 2
    assert re.fullmatch(r"bytes=\d{8}-.*", ranges[1])
    sizes = [(p.name, p.stat().st_size) for p in (tmp_path / "home").rglob("model.safetensors")]
    assert sizes == [("model.safetensors", (hub.folder / "model.safetensors").stat().st_size)]


def test_after_a_failed_download_finished_files_are_kept(hub: type[Hub], tmp_path: Path) -> None:
    hub.refused.add("model.safetensors")
    failed = sample(hub.endpoint, tmp_path / "home")
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("gpt2: no folder 'gpt2' here")
    hub.requests.clear()
    hub.refused.clear()
    done = sample(hub.endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    fetched = {path.rsplit("/", 1)[1] for command, path, _ in hub.requests if command == "GET" and "resolve" in path}
    assert fetched == {"model.safetensors"}


def test_the_older_weights_are_taken_where_there_are_no_others(hub: type[Hub], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(hub.folder / "model.safetensors"), hub.folder / "pytorch_model.bin")
    (hub.folder / "model.safetensors").unlink()
    done = sample(hub.endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(hub: type[Hub], tmp_path: Path) -> None:
    (hub.folder / "config.json").write_text('{"model_type": "llama"}')
    done = sample(hub.endpoint, tmp_path / "home")
    assert done.returncode == 2
    assert "model_type='llama'" in done.stderr.splitlines()[-1]
    assert not [path for command, path, _ in hub.requests if command == "GET" and path.endswith("safetensors")]


def test_without_network_one_line_says_what_was_tried(tmp_path: Path) -> None:
    done = sample("http://127.0.0.1:9", tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert re.match(r"gpt2: no folder 'gpt2' here, .* http://127.0.0.1:9 does not give it .* give its folder$", line)
