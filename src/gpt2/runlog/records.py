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
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from gpt2.errors import UserError, first_line
from gpt2.files import publish, write_text
from gpt2.runlog.trackers import Trackers

FILE = "log.jsonl"
# What a resumed run does again at the step of its checkpoint, because a run that is asked to stop saves first.
DONE_AGAIN = ("eval", "sample")
AN_UPDATE = b'{"event": "train"'
"""What a line begins with that need not be understood to know where a run went back."""
COURSE = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu")
MEASURED = ("train_loss", "val_loss", "acc", "acc_norm")
"""Values of updates and of evaluations that are numbers, or null where they are not finite."""
LARGEST = 1e60
"""A figure beyond it is as good as infinite."""
LATEST_TIME = 1e11
"""Seconds that no clock and no part of a run exceeds."""
COUNT_LIMIT = 1 << 63
"""Steps and tokens are fewer."""
DECODER = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and Infinity, which other programs write

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
        self._dropped = self._failures = 0
        self._torn_at: int | None = None
        """The size that the file should have, where part of a line could not be removed from it yet."""
        try:
            self._open()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({reason(error)}); choose another --out_dir") from None

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
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a disk that does not answer now may do so later
            return False

    def restore(self) -> None:
        """Write the whole log to its path again, where it was deleted or moved away. Raises OSError or UserError.

        Another file that is there by now gets the name `log.jsonl.replaced`.
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
                return  # this was said before
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:  # of a disk that fails ever again less is said
                self.note(f"{self.path} cannot be written ({reason(error)}); its records wait in memory until it can")

    def _write_waiting(self) -> None:
        """Write the lines that wait, in order. Raises OSError, and then no part of a line is in the file."""
        waited = len(self._waiting)
        while self._waiting:
            self._write_whole(self._waiting[0])
            self._waiting.popleft()
        if waited > 1 and (self._dropped or self._failures & (self._failures - 1) == 0):
            lost = f"; {self._dropped:,} older ones are lost" if self._dropped else ""
            self.note(f"{self.path} can be written again: {waited:,} records were added{lost}")
        self._dropped = 0

    def _write_whole(self, line: bytes) -> None:
        """Write a line, or nothing of it. Raises OSError."""
        if self._torn_at is not None:
            self._remove_torn_line(self._torn_at)
        end, written = os.fstat(self._file.fileno()).st_size, 0
        try:
            while written < len(line):  # a disk that is nearly full takes a part first
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
    return list(stream(path))


def stream(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a `log.jsonl` one by one, as `read_log` gives them, in little memory. Raises UserError."""
    return (record for _, record in positioned(path) if record is not None)


def positioned(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The position after each line of a `log.jsonl`, and its record, or None for one that does not count.

    A first pass finds where the run went back, so that the second one knows what to leave out; that ends where the
    first one did. Raises UserError.
    """
    with path.open("rb") as file:
        repeats, end = Repeats(), 0
        for position, line in finished_lines(file):
            end = position + len(line)
            if not line.startswith(AN_UPDATE):
                with suppress(ValueError, KeyError, TypeError, RecursionError):  # the second pass says so
                    repeats.see(position, json.loads(line))
        for number, (position, line) in enumerate(finished_lines(file), start=1):
            if position >= end:
                return
            record = parse(line, path, number)
            yield position + len(line), record if repeats.counts(position, record) else None


def finished_lines(file: BinaryIO, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from a position on, each with its position; without a last one that is not finished."""
    file.seek(begin)
    position = begin
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield position, line
        position += len(line)


def parse(line: bytes, path: Path, number: int | None = None) -> dict[str, Any]:
    """The record in a line of a log, with null for a figure that is not finite. Raises UserError."""
    try:
        return checked(DECODER.decode(line.decode(errors="replace")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    where = f"line {number}" if number else f"the line {line[:80].decode(errors='replace')!r}"
    raise UserError(f"{path}, {where} is no record; remove that line")


def checked(record: dict[str, Any]) -> dict[str, Any]:
    """A record whose values have the types that pictures and reports rely on.

    Raises ValueError, KeyError, TypeError or AttributeError for another one.
    """
    event, seconds = record["event"], record.get("seconds")
    if type(event) is not str or type(record["step"]) is not int or not 0 <= record["step"] < COUNT_LIMIT:
        raise ValueError(record)
    for key in COURSE if event == "train" else MEASURED:
        value = record.get(key)
        if value is not None and not -LARGEST < value < LARGEST:
            record[key] = None
    if not 0 <= record.get("time", 0) < LATEST_TIME or not 0 <= record.get("tokens", 0) < COUNT_LIMIT:
        raise ValueError(record)
    if seconds is None:
        record.pop("seconds", None)
    else:
        has_parts = isinstance(seconds, dict)
        if event in (("eval", "checkpoint") if has_parts else ("train",)):
            raise ValueError(record)
        total = sum(seconds.values()) if has_parts else seconds
        if not -LATEST_TIME < total < LATEST_TIME:
            raise ValueError(record)
    if event != "train":
        texts = (record.get("text", ""), record.get("because", ""))
        names = ("rank", "host", "times") if event == "straggler" else ()
        if not all(isinstance(text, str) for text in texts) or not all(name in record for name in names):
            raise ValueError(record)
        record.get("data", {}).get("val")
    return record


class Repeats:
    """Which records do not count, because the run went back and did their steps again. Positions are in the file."""

    def __init__(self) -> None:
        self.begin = 0
        """Where the run began; what is before that does not count."""
        self.resumes: list[tuple[int, int]] = []
        """Position and step of the resumes that leave something out: both rise from one to the next."""
        self.resumed: tuple[int, int] | None = None
        """The newest of all resumes."""
        self.again: dict[Any, int] = {}
        """Of what was done again after a resume: the position of that resume."""

    def see(self, position: int, record: dict[str, Any]) -> None:
        """Take note of a record, one after the other. Raises KeyError or TypeError for what is none."""
        event, step = record["event"], record["step"]
        if event == "start":
            self.begin, self.resumes, self.resumed, self.again = position, [], None, {}
        elif event == "resume":
            self.resumed = position, step
            while self.resumes and self.resumes[-1][1] >= step:
                self.resumes.pop()  # the newer one leaves out all that the older one does
            self.resumes.append(self.resumed)
        elif event in DONE_AGAIN and self.resumed is not None and self.resumed[1] == step:
            self.again[_kind(record)] = self.resumed[0]

    def counts(self, position: int, record: dict[str, Any]) -> bool:
        """Whether a record counts: no later resume goes back behind it, and nothing replaces it."""
        if position < self.begin:
            return False
        later = bisect_right(self.resumes, (position, record["step"]))
        if later < len(self.resumes) and record["step"] > self.resumes[later][1]:
            return False
        return record["event"] not in DONE_AGAIN or position >= self.again.get(_kind(record), 0)


def _kind(record: dict[str, Any]) -> tuple[Any, ...]:
    """What one record replaces another by. An evaluation of the loss does not replace one of HellaSwag."""
    return record["event"], record["step"], frozenset(record)
