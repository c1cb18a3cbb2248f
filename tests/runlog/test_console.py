import io
import re

import pytest
import rich.console
from rich.console import Console

from gpt2.runlog.console import RunConsole, duration

VALUES = {"loss": 1.23456, "lr": 6e-4, "grad_norm": 0.5, "tokens_per_second": 12345.6, "mfu": 0.423}


def test_plain_lines_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with RunConsole(total=100, done=0) as out:
        out.step(10, VALUES, eta_seconds=90)
        out.note("[bold] is text here")
    captured = capfd.readouterr()
    assert captured.err.splitlines() == [
        "step 10/100 · loss 1.2346 · lr 6.00e-04 · norm 0.50 · 12,346 tok/s · mfu 42.3% · eta 1m30s",
        "[bold] is text here",
    ]
    assert captured.out == ""


def test_a_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(rich.console, "Console", lambda **settings: terminal)
    with RunConsole(total=100, done=5) as out:
        out.step(10, VALUES, eta_seconds=90)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "step 10/100" in text
    assert "loss 1.2346" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3600, "1h00m"), (90061, "25h01m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
