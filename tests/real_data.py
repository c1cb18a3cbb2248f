"""Where real text, HellaSwag and GPT-2's vocabulary are, beside the project; without them, tests are skipped."""

from pathlib import Path

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
