"""The command itself: how it starts, and how it ends."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from generation.models import random_model

import gpt2
from gpt2.tokenizers import ByteTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a context in which a text takes some time."""
    path = tmp_path_factory.mktemp("serve") / "small"
    gpt2.export(random_model(block_size=4096), "hf", path, tokenizer=ByteTokenizer())
    return path


@contextmanager
def command(
    *arguments: str, stderr: Any = subprocess.PIPE, files: tuple[int, int] | None = None
) -> Iterator[subprocess.Popen]:
    """Run `gpt2 serve` on any free port until the end of the block. files: its soft and hard limit of open files."""
    words = [sys.executable, "-m", "gpt2", "serve", "--port=0", "--device=cpu", *arguments]
    process = subprocess.Popen(
        words,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def address(process: subprocess.Popen) -> str:
    """Return where the server listens, once it has said so."""
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(r"serving (http://\S+)/v1", line):
            return match[1]
    raise AssertionError("the server did not start")


def stream(client: httpx.Client, where: str, n: int, name: str = "small") -> Any:
    body = {"model": name, "max_tokens": n, "stream": True, "temperature": 0}
    return client.stream("POST", f"{where}/v1/completions", json=body, timeout=60)


def test_it_ends_in_order_and_does_not_need_its_folder(folder: Path, tmp_path: Path) -> None:
    """The folder of the model is deleted while it is served; then SIGTERM arrives while a text is generated."""
    own = shutil.copytree(folder, tmp_path / "own")
    with command(f"mine={own}", "--parallel=2") as process, httpx.Client() as client:
        where = address(process)
        shutil.rmtree(own)
        with stream(client, where, 400, "mine") as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0


def test_the_rest_ends_after_the_grace_period(folder: Path) -> None:
    with command(str(folder), "--grace=0") as process, httpx.Client() as client:
        where = address(process)
        with stream(client, where, 4000) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = list(lines)
        assert any('"server_stops"' in line for line in rest)
        assert process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with command(str(folder), "--grace=1000") as process, httpx.Client() as client:
        where = address(process)
        with stream(client, where, 4000) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_ends_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Path("/dev/full").open("w") as full, command(str(folder), f"--port={port}", stderr=full) as process:
        asked = {"model": "small", "logit_bias": {"256": -100}}  # no end-of-text
        for _ in range(600):
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, timeout=60)
                break
            except httpx.ConnectError:
                assert process.poll() is None
                time.sleep(0.05)
        assert answer.json()["usage"]["completion_tokens"] == 16
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.parametrize("files", [(256, 256), (256, 4096)])
def test_a_limit_of_open_files_does_not_fill_the_log(files: tuple[int, int], folder: Path) -> None:
    """asyncio logs thousands of lines per second where it cannot accept connections."""
    with command(str(folder), files=files) as process:
        where = address(process)
        port = int(where.rpartition(":")[2])
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
        time.sleep(0.5)
        for connection in connections:
            connection.close()
        assert httpx.get(f"{where}/health", timeout=20).status_code == 200
        process.terminate()
        assert process.communicate(timeout=20)[1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host=0.0.0.0", "nothing"], "needs an API key; give --api_key_file, or set GPT2_API_KEY"),
        (["nothing"], "no model 'nothing'"),
        (["--api_key_file=nothing", "x"], "cannot read the API key from nothing"),
        (["a=x", "a=y"], "two models have the name 'a'"),
        (["--port=TAKEN", "x"], "of 127.0.0.1 cannot be served: Address already in use"),
        (["--host=no.such.host.invalid", "x"], "no.such.host.invalid"),
        (["--parallel=0", "x"], "parallel is 0"),
        ([], "MODELS"),
    ],
)
def test_what_is_wrong_is_one_line(
    gpt2_command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "no.such.host" in message:
        monkeypatch.setenv("GPT2_API_KEY", "sesame")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [one.replace("TAKEN", port) for one in arguments]
        status, out, err = gpt2_command("serve", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err


def test_a_key_file_must_hold_one_line(tmp_path: Path) -> None:
    from gpt2.cli.serve import api_key
    from gpt2.errors import UserError

    file = tmp_path / "key"
    file.write_text(" sesame\n")
    assert api_key(file) == "sesame"
    for content in ("", "\n", "a\nb\n"):
        file.write_text(content)
        with pytest.raises(UserError, match="holds no API key"):
            api_key(file)
