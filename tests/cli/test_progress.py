"""Commands on a terminal, where a progress bar changes in place."""

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest

SECONDS = 120


def on_a_terminal(*words: str, folder: Path) -> tuple[int, str]:
    """Run `gpt2` with the words on a terminal of its own; return its status and what the terminal shows."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ |= {"COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, "-m", "gpt2", *words])
    shown, deadline = b"", time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    piece = os.read(terminal, 1 << 16)
                except OSError:  # the other end is closed
                    break
                if not piece:
                    break
                shown += piece
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"still running after {SECONDS} seconds: {shown[-500:]!r}")
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace")).replace("\r", "\n")
    return os.waitstatus_to_exitcode(status), text


def test_a_run_on_a_terminal_moves_its_bar_and_ends(tiny, tmp_path: Path) -> None:
    """A proxy of rich once wrote to itself here without end."""
    config = tiny(max_iters=6, eval_interval=3, log_interval=100)
    names = ("dataset", "block_size", "batch_size", "n_layer", "n_head", "n_embd", "max_iters", "eval_interval",
             "eval_iters", "log_interval", "device", "dtype", "compile", "out_dir")  # fmt: skip
    flags = [f"--{name}={getattr(config, name)}" for name in names]
    status, text = on_a_terminal("train", *flags, folder=tmp_path)
    assert status == 0, text
    assert "step 6/6" in text  # although no line about a step was due
    for line in ("step 3 · train loss", "finished at step 6", "next: gpt2 sample"):
        assert line in text


def test_a_preparation_on_a_terminal_ends(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words to prepare\n" * 1000)
    status, text = on_a_terminal("prepare", "text.txt", "--tokenizer=byte", "--out=d", folder=tmp_path)
    assert status == 0, text
    assert "100%" in text
    assert "wrote d; train on it" in text
