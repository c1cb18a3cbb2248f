"""`log.jsonl`: what happened in a run, one JSON object a line.

Every record has `event`, `step` (updates done) and `time` (Unix seconds). The log is only ever appended
to. A resumed run writes a `resume` record and then does the steps after its checkpoint again, and
`read_log` leaves out what those replace. A run that begins again writes a `start` record, and nothing
before it counts.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt2.errors import UserError
from gpt2.files import write_text
from gpt2.runlog.trackers import Trackers

FILE = "log.jsonl"
# What a resumed run does again at the step of its checkpoint, because a run that is asked to stop saves first.
DONE_AGAIN = ("eval", "sample")


class LogWriter:
    """Appends records to the log of a run folder and tells its trackers. Of several processes only one `writes`."""

    def __init__(
        self,
        out_dir: Path,
        writes: bool = True,
        trackers: Trackers | None = None,
        *,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = path = out_dir / FILE if writes else Path(os.devnull)
        self.samples = out_dir / "samples" if writes else None
        if writes:
            _cut_torn_line(path)
        self._file = path.open("a+", encoding="utf-8")
        self.trackers = trackers

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one record; it survives the process from here on. JSON has no inf and nan: they become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        record = {"event": event, "step": step, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self.trackers is not None:
            self.trackers.log(event, step, values)

    @property
    def lost(self) -> bool:
        """Whether the file was deleted or moved away, so that what is written is nowhere to be found."""
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return True

    def restore(self) -> None:
        """Write the whole log to its path again, where it was deleted or moved away. Raises OSError."""
        self._file.seek(0)
        write_text(self.path, self._file.read())
        self._file.close()
        self._file = self.path.open("a+", encoding="utf-8")

    def sample(self, step: int, text: str, **values: Any) -> None:
        """Keep a text that the model wrote, as a file and as a record."""
        if self.samples is not None:
            write_text(self.samples / f"step_{step:07d}.txt", text + "\n")
        self.write("sample", step, text=text, **values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that a killed process did not finish."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run folder (or of a `log.jsonl`) in order, without what a resume did again.

    Raises UserError where there is no log, or a line in it is none.
    """
    path = run / FILE if run.is_dir() else run
    if not path.is_file():
        raise UserError(f"{run} holds no {FILE}; name the out_dir of a run")
    records: list[dict[str, Any]] = []
    resumed_at, before = None, 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        try:
            record = json.loads(line)
            event, step = record["event"], record["step"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number} is no record; remove that line") from None
        if event == "start":
            records, resumed_at = [], None
        elif event == "resume":
            records = [r for r in records if r["step"] <= step]
            resumed_at, before = step, len(records)
        elif event in DONE_AGAIN and step == resumed_at:
            # an evaluation of the loss does not replace one of HellaSwag, which has other figures
            again = (event, step, record.keys())
            kept = [r for r in records[:before] if (r["event"], r["step"], r.keys()) != again]
            records, before = kept + records[before:], len(kept)
        records.append(record)
    return records
