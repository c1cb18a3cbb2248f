"""`log.jsonl`: what happened in a run, one JSON object a line.

Every record has `event`, `step` (updates done) and `time` (Unix seconds). The log is only ever appended
to. A resumed run writes a `resume` record and then does the steps after its checkpoint again, and
`read_log` leaves out what those replace. A run that begins again writes a `start` record, and nothing
before it counts.
"""

import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt2.errors import UserError, first_line
from gpt2.files import publish, write_text
from gpt2.runlog.trackers import Trackers

FILE = "log.jsonl"
# What a resumed run does again at the step of its checkpoint, because a run that is asked to stop saves first.
DONE_AGAIN = ("eval", "sample")


MOST_WAITING = 100_000
"""Records that are kept in memory while the log cannot be written."""
PIECE = 1 << 16
"""Bytes that are read at a time to find the end of the last line."""


class LogWriter:
    """Appends records to the log of a run folder and gives them to its trackers. Of several processes one `writes`.

    A disk that is full, or fails, never ends a run: records wait in memory until they can be written. `note` receives
    a line about that.
    """

    def __init__(
        self,
        out_dir: Path,
        writes: bool = True,
        trackers: Trackers | None = None,
        *,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = out_dir / FILE if writes else Path(os.devnull)
        self.samples = out_dir / "samples" if writes else None
        self.trackers, self.note = trackers, note
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._dropped = 0
        self._open()

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one record; it survives the process from here on. JSON has no inf and nan: they become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        record = {"event": event, "step": step, "time": round(time.time(), 3), **finite}
        self._append(json.dumps(record).encode() + b"\n")
        if self.trackers is not None:
            self.trackers.log(event, step, values)

    def sample(self, step: int, text: str, **values: Any) -> None:
        """Keep a text that the model wrote, as a file and as a record."""
        if self.samples is not None:
            path = self.samples / f"step_{step:07d}.txt"
            try:
                write_text(path, text + "\n")
            except (OSError, UserError) as error:
                self.note(f"{path} cannot be written ({reason(error)}); the text is in {FILE}")
        self.write("sample", step, text=text, **values)

    @property
    def lost(self) -> bool:
        """Whether the file was deleted or moved away, so that nobody finds what is written."""
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return True
        except OSError:  # a disk that does not answer now may do so later
            return False

    def restore(self) -> None:
        """Write the whole log to its path again, where it was deleted or moved away. Raises OSError or UserError."""
        self._file.seek(0)
        with publish(self.path) as temporary, temporary.open("wb") as copy:
            shutil.copyfileobj(self._file, copy)
        self._file.close()
        self._open()

    def _open(self) -> None:
        if self.samples is not None:
            _cut_torn_line(self.path)
        self._file = self.path.open("a+b", buffering=0)

    def _append(self, line: bytes) -> None:
        """Write a line after those that wait; where that fails, it waits too."""
        self._dropped += len(self._waiting) == MOST_WAITING
        self._waiting.append(line)
        try:
            self._write_waiting()
        except OSError as error:
            if len(self._waiting) == 1:  # else this was said before
                self.note(f"{self.path} cannot be written ({reason(error)}); its records wait in memory until it can")

    def _write_waiting(self) -> None:
        """Write the lines that wait, in order. Raises OSError, and then no part of a line is in the file."""
        waited = len(self._waiting)
        while self._waiting:
            self._write_whole(self._waiting[0])
            self._waiting.popleft()
        if waited > 1:
            lost = f"; {self._dropped:,} older ones are lost" if self._dropped else ""
            self.note(f"{self.path} can be written again: {waited:,} records were added{lost}")
            self._dropped = 0

    def _write_whole(self, line: bytes) -> None:
        """Write a line, or nothing of it. Raises OSError."""
        end, written = os.fstat(self._file.fileno()).st_size, 0
        try:
            while written < len(line):  # a disk that is nearly full takes a part first
                written += self._file.write(line[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), end)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._waiting:
            try:
                self._write_waiting()
            except OSError as problem:
                count = len(self._waiting) + self._dropped
                self.note(f"{self.path} lacks the last {count:,} records ({reason(problem)})")
        self._file.close()


def reason(error: Exception) -> str:
    """Why a file could not be written, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that a killed process did not finish."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = whole = file.seek(0, os.SEEK_END)
        while whole:
            begin = max(0, whole - PIECE)
            file.seek(begin)
            newline = file.read(whole - begin).rfind(b"\n")
            whole = begin + newline + 1
            if newline >= 0:
                break
        if whole < end:
            file.truncate(whole)


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
