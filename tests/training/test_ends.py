"""Runs that end in ways drawn at random lose nothing; `ways_to_end.py` says in which."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENDS = int(os.environ.get("GPT2_TEST_ENDS", "6"))
"""How many runs are ended; more make the test longer."""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir() or not hasattr(os, "fork"), reason="needs Linux")
def test_however_a_run_ends_nothing_is_lost(dataset: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ends.py")
    command = [sys.executable, str(script), str(tmp_path / "ends"), str(dataset), str(ENDS), str(time.time_ns())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{ENDS} ends, 0 with something wrong" in done.stdout
