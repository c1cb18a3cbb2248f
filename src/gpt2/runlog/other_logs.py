"""Logs of other programs, read as records of `log.jsonl`, and written: llm.c's `main.log`, build-nanogpt's `log.txt`.

Both number steps from 0, so that their training line `s` is the record of step s + 1 in `log.jsonl`. An evaluation
comes before the step of its number, after s steps, as in `log.jsonl`.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2.errors import UserError
from gpt2.files import write_text
from gpt2.runlog.checks import parse
from gpt2.runlog.records import FILE, Repeats, Skip, finished_lines, stream
from gpt2.spelling import did_you_mean


@dataclass(frozen=True)
class OtherLog:
    """Describes another program's log, whose lines each have a step and some values."""

    file: str
    """Name of the log file."""
    program: str
    pattern: re.Pattern[str]
    """Matches a line, with the groups `step` and `values`."""
    names: dict[str, str]
    """The name in `log.jsonl` of each name in this log."""
    lines: dict[str, str]
    """The template of the line that holds a value, by its name in `log.jsonl`; `s` is the step in this log."""

    def parse(self, line: str) -> tuple[int, dict[str, float | None]] | None:
        """Return the step and the values of a line, as in `log.jsonl`; None where it is no line of this log.

        Other values are omitted, and a number that is not finite is None.
        """
        found = self.pattern.fullmatch(line.strip())
        if found is None:
            return None
        pairs = re.findall(r"(\w+)[: ](\S+)", found["values"])
        try:
            numbers = {self.names[name]: float(text) for name, text in pairs if name in self.names}
        except ValueError:
            return None
        values = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        return int(found["step"]) + ("loss" in values), values


LLMC = OtherLog(
    "main.log",
    "llm.c",
    re.compile(r"s:(?P<step>[0-9]{1,18})(?P<values>( \w+:\S+)+)"),
    {"trl": "loss", "lr": "lr", "norm": "grad_norm", "tel": "val_loss", "eval": "acc_norm"},
    {  # as its CUDA trainer writes them; train_gpt2.py writes losses only, with six digits
        "loss": "s:{s} trl:{loss:.4f} lr:{lr:.6f} norm:{grad_norm:.2f}",
        "val_loss": "s:{s} tel:{val_loss:.4f}",
        "acc_norm": "s:{s} eval:{acc_norm:.4f}",
    },
)
BUILD_NANOGPT = OtherLog(
    "log.txt",
    "build-nanogpt",
    re.compile(r"(?P<step>[0-9]{1,18}) (?P<values>(train|val|hella) \S+)"),
    {"train": "loss", "val": "val_loss", "hella": "acc_norm"},
    {
        "loss": "{s} train {loss:.6f}",
        "val_loss": "{s} val {val_loss:.4f}",
        "acc_norm": "{s} hella {acc_norm:.4f}",
    },
)
OTHER_LOGS = (LLMC, BUILD_NANOGPT)


def read_any(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run folder, or of a log that is recognised by its first line; see `stream_any`."""
    return list(stream_any(path))


def find_log(path: Path) -> Path:
    """Return the log in a run folder, `log.jsonl` before another program's; the path itself where it is a file.

    Raises UserError where there is none.
    """
    if path.is_dir():
        files = [path / name for name in (FILE, *(log.file for log in OTHER_LOGS))]
        path = next((file for file in files if file.is_file()), path)
    if not path.exists():
        raise UserError(
            f"there is no run or log {path}; {did_you_mean(str(path), (), 'name the out_dir of a run, or a log')}"
        )
    if not path.is_file():
        raise UserError(
            f"{path} holds no {FILE}, nor a main.log of llm.c or log.txt of build-nanogpt; name the out_dir of a "
            "run, or a log"
        )
    return path


def stream_any(path: Path, skip: Skip = lambda: None) -> Iterator[dict[str, Any]]:
    """Yield the records of a run folder or of a log, in little memory.

    Another program's log gives `train` and `eval` records without a `time`. skip: called for each line that is not a
    record. Raises UserError where there is no log.
    """
    path = find_log(path)
    with path.open("rb") as file:
        first = _first_line(file)
        if (log := _recognised(first)) is not None:
            yield from _records(file, log, skip)
            return
    if path.name != FILE and parse(first.encode()) is None:
        raise UserError(
            f"{path} is not a log of a run: its first line is neither of a {FILE}, nor of llm.c's main.log, nor of "
            "build-nanogpt's log.txt; name the out_dir of a run, or a log"
        )
    yield from stream(path, skip)


def is_another_programs(path: Path) -> bool:
    """Return whether a log is another program's, by its first line. Raises OSError."""
    with path.open("rb") as file:
        return _recognised(_first_line(file)) is not None


def _first_line(file: BinaryIO) -> str:
    """Return the first line of a log that is not empty."""
    return next((line for _, line in finished_lines(file) if line.strip()), b"").decode(errors="replace")


def _recognised(first_line: str) -> OtherLog | None:
    return next((log for log in OTHER_LOGS if log.parse(first_line) is not None), None)


def _records(file: BinaryIO, log: OtherLog, skip: Skip) -> Iterator[dict[str, Any]]:
    """Yield the records of another program's log. Where its steps go back, the run was resumed and later lines count.

    A first pass finds where that is. An evaluation of several figures becomes one record.
    """
    repeats, highest = Repeats(), -1
    for position, record in _parsed(file, log, lambda: None):
        limit = record["step"] - (record["event"] == "train")  # the last step before this line that still counts
        if highest > limit:
            repeats.see(position - 1, {"event": "resume", "step": limit})
        highest = record["step"]
    last: dict[str, Any] | None = None
    for position, record in _parsed(file, log, skip):
        if not repeats.counts(position, record):
            continue
        if last is not None and last["event"] == record["event"] == "eval" and last["step"] == record["step"]:
            last |= record
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last


def _parsed(file: BinaryIO, log: OtherLog, skip: Skip) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the record in each line of another program's log that has one, after the position of the line's end."""
    for position, line in finished_lines(file):
        if line.isspace():
            continue
        if (parsed := log.parse(line.decode(errors="replace"))) is None:
            skip()
            continue
        step, values = parsed
        if values:  # otherwise its kind is unknown
            yield position, {"event": "train" if "loss" in values else "eval", "step": step, **values}


class OtherLogWriter:
    """Writes a log as another program does. It is a tracker; a resumed run first removes the lines of later steps."""

    def __init__(self, folder: Path, description: OtherLog) -> None:
        self.description, self.path = description, folder / description.file
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.resumed_at: int | None = None

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        """Append the lines of a record."""
        if event == "start":
            self._keep(lambda at, measured: False)
        if event == "resume":
            self.resumed_at = step
            self._keep(lambda at, measured: at <= step)
        if event not in ("train", "eval"):
            return
        if event == "eval" and step == self.resumed_at:  # a resume does this evaluation again
            self._keep(lambda at, measured: at < step or not measured & values.keys())
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for name, line in self.description.lines.items():
                if name in values:
                    file.write(line.format(s=step - (name == "loss"), **values) + "\n")

    def _keep(self, wanted: Callable[[int, set[str]], bool]) -> None:
        """Keep the lines whose step and names of values are `wanted`; remove all others, also an unfinished one."""
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if (found := self.description.parse(line)) and wanted(found[0], set(found[1]))]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        """Do nothing: every line is on disk already."""
