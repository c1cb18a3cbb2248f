import io
import re

import pytest
import rich.console
from rich.console import Console

from gpt2.runlog import console
from gpt2.runlog.console import RunConsole, WorkConsole, duration

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


def test_a_file_gets_plain_lines_where_colours_are_forced(capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    """FORCE_COLOR, which test runners and CI set, made rich write all states of the bar to files."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunConsole(total=100, done=0) as out:
        out.step(10, VALUES, eta_seconds=90)
    with WorkConsole("tokens") as out:
        out.progress(10, 10, 3)
        out.note("done")
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 2
    assert not {"\r", "\x1b"} & set(err)


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


def test_work_says_its_rate_and_the_time_left(capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    with WorkConsole("tokens") as out:
        for second in range(0, 31, 3):
            now[0] = second
            out.progress(200 + 20 * second, 1000, 5000 + 10 * second)  # 200 bytes were read by an earlier process
        now[0] = 100.0
        out.progress(10, 1000, 0)  # another reading of the same
        now[0] = 110.0
        out.progress(60, 1000, 0)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "44% · 5,120 tokens · 10 tokens/s · eta 28s",
        "68% · 5,240 tokens · 10 tokens/s · eta 16s",
        "6% · 0 tokens · 0 tokens/s · eta 3m08s",
    ]


def test_work_between_two_steps_is_shown_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("gpt2.runlog.console.monotonic", lambda: now[0])
    with RunConsole(10, 0) as shown:
        for done in range(5):
            shown.working("evaluating", done, 5)
            now[0] += 6.0
    assert capsys.readouterr().err.splitlines() == ["evaluating 2/5", "evaluating 4/5"]
