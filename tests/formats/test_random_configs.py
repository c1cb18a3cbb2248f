"""Random configuration files with hostile values; `random_configs.py` says what they are and makes more of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

COUNT = int(os.environ.get("GPT2_TEST_CONFIGS", "80"))


def test_random_configs_end_in_one_line_soon_and_in_little_memory() -> None:
    script = Path(__file__).with_name("random_configs.py")
    done = subprocess.run([sys.executable, script, str(COUNT), "0"], capture_output=True, text=True, timeout=600)
    outcome = json.loads(done.stdout)
    assert outcome["faults"] == []
    assert outcome["megabytes"] < 300
