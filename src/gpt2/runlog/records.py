"""`log.jsonl`: what happened in a run, as one JSON object per line.

Every record has `event`, `step` (optimizer steps made) and `time` (Unix seconds). Records are only ever appended. A
resumed run writes a `resume` record and then does the steps after its checkpoint again; `read_log` omits the records
that those replace. A run that starts over writes a `start` record, and no earlier record counts.
"""

import json
import math
import os
import shutil
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from gpt2.errors import UserError, first_line
from gpt2.files import publish, write_text
from gpt2.runlog.checks import parse
from gpt2.runlog.trackers import Trackers

FILE = "log.jsonl"
DONE_AGAIN = ("eval", "sample", "snapshot")
"""Events that a resumed run repeats at the step of its checkpoint: a run that is asked to stop saves first."""
TRAIN_LINE = b'{"event": "train"'
"""The beginning of a line that need not be parsed to find where a run went back."""
MOST_WAITING = 100_000
"""Records that are kept in memory while the log cannot be written."""
PIECE = 1 << 16
"""Bytes that are read at a time to find the end of the last line."""
LONGEST_LINE = 1 << 24
"""Bytes of a line, at most: a file without newlines must not fill the memory."""
NO_RECORD = b"?\n"
"""Stands for a line that is too long."""
Skip = Callable[[], None]
"""A function that counts the lines that are skipped."""


Listener = Callable[[str, int, dict[str, Any]], None]
"""A function that receives every record of a run: event, step and values."""


class LogWriter:
    """Appends records to the log of a run folder and gives them to its trackers.

    A disk that is full, or fails, never ends a run: records wait in memory until they can be written, and `note`
    receives a line about that. writes: False in all but one of several processes. listener: called with every record
    after it is written; what it raises is not caught.
    """

    def __init__(
        self,
        out_dir: Path,
        writes: bool = True,
        trackers: Trackers | None = None,
        *,
        listener: Listener | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = out_dir / FILE if writes else Path(os.devnull)
        self.samples = out_dir / "samples" if writes else None
        self.trackers, self.listener, self.note = trackers, listener, note
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._dropped = self._failures = 0
        self._torn_at: int | None = None
        """The size that the file should have, where an incomplete line could not be removed from it yet."""
        try:
            self._open()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({reason(error)}); choose another --out_dir") from None

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one record, which then survives the process. Infinity and NaN, which JSON lacks, become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        record = {"event": event, "step": step, "time": round(time.time(), 3), **finite}
        self._append(json.dumps(record).encode() + b"\n")
        if self.trackers is not None:
            self.trackers.log(event, step, values)
        if self.listener is not None:
            self.listener(event, step, values)

    def sample(self, step: int, text: str, **values: Any) -> None:
        """Keep a text that the model generated, as a file and as a record."""
        if self.samples is not None:
            path = self.samples / f"step_{step:07d}.txt"
            try:
                write_text(path, text + "\n")
            except (OSError, UserError) as error:
                self.note(f"{path} cannot be written ({reason(error)}); the text is in {FILE}")
        self.write("sample", step, text=text, **values)

    @property
    def lost(self) -> bool:
        """Return whether the file was deleted or moved away, so that nobody finds what is written."""
        try:
            return not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a disk that does not answer now may do so later
            return False

    def restore(self) -> None:
        """Write the complete log to its path again, where it was deleted or moved away. Raises OSError or UserError.

        Another file that has its name by now is renamed to `log.jsonl.replaced`.
        """
        if self.lost and os.path.lexists(self.path):
            self.path.replace(self.path.with_name(f"{FILE}.replaced"))
        self._file.seek(0)
        with publish(self.path) as temporary, temporary.open("wb") as copy:
            shutil.copyfileobj(self._file, copy)
        self._file.close()
        self._torn_at = None
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
            if len(self._waiting) > 1:
                return  # this was reported before
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:  # a disk that keeps failing is reported ever less often
                self.note(f"{self.path} cannot be written ({reason(error)}); its records wait in memory until it can")

    def _write_waiting(self) -> None:
        """Write the waiting lines, in order. Raises OSError, and then the file has no incomplete line."""
        waited = len(self._waiting)
        while self._waiting:
            self._write_line(self._waiting[0])
            self._waiting.popleft()
        if waited > 1 and (self._dropped or self._failures & (self._failures - 1) == 0):
            lost = f"; {self._dropped:,} older ones are lost" if self._dropped else ""
            self.note(f"{self.path} can be written again: {waited:,} records were added{lost}")
        self._dropped = 0

    def _write_line(self, line: bytes) -> None:
        """Write a complete line, or nothing. Raises OSError."""
        if self._torn_at is not None:
            self._remove_torn_line(self._torn_at)
        end, written = os.fstat(self._file.fileno()).st_size, 0
        try:
            while written < len(line):  # a disk that is nearly full takes some of it first
                written += self._file.write(line[written:])
        except OSError:
            if written:
                self._torn_at = end
                with suppress(OSError):  # the next line removes it then
                    self._remove_torn_line(end)
            raise

    def _remove_torn_line(self, size: int) -> None:
        os.ftruncate(self._file.fileno(), size)
        self._torn_at = None

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
    """Return in a few words why a file could not be written."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error)


def _cut_torn_line(path: Path) -> None:
    """Remove a last line that a killed process left unfinished."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - PIECE)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            end = begin + newline + 1
            if newline >= 0:
                break
        if end < size:
            file.truncate(end)


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """Return the records of a run folder (or of a `log.jsonl`) in order, without those that a resume replaced.

    Lines that are not records are omitted. Raises UserError where there is no log.
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise UserError(f"{run} holds no {FILE}; name the out_dir of a run")
    return list(stream(path))


def stream(path: Path, skip: Skip = lambda: None) -> Iterator[dict[str, Any]]:
    """Yield the records of a `log.jsonl` as `read_log` returns them, in little memory.

    skip: called for each line that is not a record.
    """
    return (record for _, record in positioned(path, skip) if record is not None)


def positioned(path: Path, skip: Skip = lambda: None) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield the position after each line of a `log.jsonl`, and its record, or None for one that does not count.

    A first pass finds where the run went back, so that the second one knows which records to omit; it ends where the
    first one did. skip: called for each line that is not a record.
    """
    with path.open("rb") as file:
        repeats, end = Repeats(), 0
        for end, line in finished_lines(file):
            if not line.startswith(TRAIN_LINE) and (record := parse(line)) is not None:
                repeats.see(end, record)
        for position, line in finished_lines(file):
            if position > end:
                return
            record = parse(line)
            if record is None and not line.isspace():
                skip()
            yield position, record if record is not None and repeats.counts(position, record) else None


def finished_lines(file: BinaryIO, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file from a position on, each with the position after it, without an unfinished last line.

    Of a line that is longer than LONGEST_LINE bytes, only the last part is yielded, which is no record.
    """
    file.seek(begin)
    position, is_rest = begin, False
    while line := file.readline(LONGEST_LINE):
        position += len(line)
        if line.endswith(b"\n"):
            yield position, NO_RECORD if is_rest else line
        is_rest = not line.endswith(b"\n")


class Repeats:
    """Finds the records that do not count, because the run went back and did their steps again.

    Positions are byte offsets in the file.
    """

    def __init__(self) -> None:
        self.begin = 0
        """Position where the run began; earlier records do not count."""
        self.resumes: list[tuple[int, int]] = []
        """Position and step of each resume that replaces something; both rise from one to the next."""
        self.resumed: tuple[int, int] | None = None
        """Position and step of the newest resume."""
        self.again: dict[Any, int] = {}
        """Position of the resume after which something was done again, by its kind."""

    def see(self, position: int, record: dict[str, Any]) -> None:
        """Take the next record into account."""
        event, step = record["event"], record["step"]
        if event == "start":
            self.begin, self.resumes, self.resumed, self.again = position, [], None, {}
        elif event == "resume":
            self.resumed = position, step
            while self.resumes and self.resumes[-1][1] >= step:
                self.resumes.pop()  # the newer one replaces all that the older one does
            self.resumes.append(self.resumed)
        elif event in DONE_AGAIN and self.resumed is not None and self.resumed[1] == step:
            self.again[_kind(record)] = self.resumed[0]

    def counts(self, position: int, record: dict[str, Any]) -> bool:
        """Return whether a record counts: no later resume goes back to an earlier step, and nothing replaces it."""
        if position < self.begin:
            return False
        later = bisect_right(self.resumes, (position, record["step"]))
        if later < len(self.resumes) and record["step"] > self.resumes[later][1]:
            return False
        return record["event"] not in DONE_AGAIN or position >= self.again.get(_kind(record), 0)


def _kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return the kind by which a record replaces another: an evaluation of the loss is not one of HellaSwag."""
    return record["event"], record["step"], frozenset(record)
