"""The program that compares servers of OpenAI's API, with our own."""

import runpy
import sys
from pathlib import Path

import pytest
from serve.conftest import running

PROGRAM = Path(__file__).parent.parent.parent / "benchmarks" / "api_features.py"
pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="needs the repository around the package")


def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *servers: str) -> list[str]:
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *servers])
    runpy.run_path(str(PROGRAM), run_name="__main__")
    return capsys.readouterr().out.splitlines()


def test_addresses_with_and_without_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(block_size=512) as one:
        names, *rows, last = table(monkeypatch, capsys, f"ours={one.address}/v1/", one.address)
    assert names.split() == ["ours", one.address]
    assert last.split() == [*["greedy", "texts", "as", "the", "first"], *["5", "of", "5", "5", "of", "5"]]
    assert all(row[28:44] == row[44:60] for row in rows)
    failed = [row[:28].strip() for row in rows if "(" in row]
    assert failed == ["token ids as prompt"], "GPT-2's ids, which a model of bytes does not have"
    assert sum(row[28:].startswith("yes ") for row in rows) >= 15


def test_a_server_that_does_not_answer_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("http://127.0.0.1:9", "foo"):
        with pytest.raises(SystemExit, match=rf"^{wrong}/v1 lists no model [^\n]*; give the address of a server"):
            table(monkeypatch, capsys, wrong)
