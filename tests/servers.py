"""Runs `gpt2 serve` for the documents that show it."""

import json
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8000")
"""The address of the server in documents."""
FEW = 5
"""Number of new tokens of a completion."""


@contextmanager
def served(words: list[str]) -> Iterator[str]:
    """Run a server on any free port to the end of the block; yields its address."""
    command = [sys.executable, "-m", *words, "--port=0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = None
            for line in process.stderr:
                if found := re.search(r"serving http://(\S+)/v1", line):
                    break
            assert found, f"{shlex.join(words)} does not start"
            yield found[1]
        finally:
            process.terminate()
        assert process.wait(60) == 0


def fetched(words: list[str], address: str) -> str:
    """Return the answer to `curl URL -d BODY` from the server at `address`, for few tokens."""
    url, option, body = words[1:]
    assert option == "-d"
    url = ADDRESS.sub(address, url)
    asked = json.loads(body)
    if "max_tokens" in asked:
        asked["max_tokens"] = FEW
    try:
        with urllib.request.urlopen(url if "://" in url else f"http://{url}", json.dumps(asked).encode()) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()
