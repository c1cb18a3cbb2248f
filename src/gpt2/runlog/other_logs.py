"""Logs of llm.c (`main.log`) and build-nanogpt (`log.txt`): read as the records of `log.jsonl`, written beside it.

Both number an update by those before it, so that their training line `s` is our record of step s + 1; an evaluation
comes before the update of its number, after as many as that, as ours does.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpt2.errors import UserError
from gpt2.files import write_text
from gpt2.runlog.records import FILE, Repeats, finished_lines, stream


@dataclass(frozen=True)
class PeerLog:
    """A format of lines, each with a step and some values."""

    file: str
    whose: str
    pattern: re.Pattern[str]
    """Of a line: its `step`, and its `values` by name."""
    names: dict[str, str]
    """Ours of theirs."""
    lines: dict[str, str]
    """How a line is written that has this value of ours, at their step `s`."""

    def parse(self, line: str) -> tuple[int, dict[str, float | None]] | None:
        """Our step, and values by our names, of a line; None where it is no line of this log.

        What else a line may hold is left out, and what is no finite number is None, as in log.jsonl.
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


LLMC = PeerLog(
    "main.log",
    "llm.c",
    re.compile(r"s:(?P<step>[0-9]{1,18})(?P<values>( \w+:\S+)+)"),
    {"trl": "loss", "lr": "lr", "norm": "grad_norm", "tel": "val_loss", "eval": "acc_norm"},
    {  # as its CUDA trainer; the values of train_gpt2.py have six digits, and only the losses are there
        "loss": "s:{s} trl:{loss:.4f} lr:{lr:.6f} norm:{grad_norm:.2f}",
        "val_loss": "s:{s} tel:{val_loss:.4f}",
        "acc_norm": "s:{s} eval:{acc_norm:.4f}",
    },
)
BUILD_NANOGPT = PeerLog(
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
PEERS = (LLMC, BUILD_NANOGPT)


def read_any(path: Path) -> list[dict[str, Any]]:
    """The records of a run folder, or of a log that is recognised by its first line, in order; see `stream_any`."""
    return list(stream_any(path))


def find_log(path: Path) -> Path:
    """The log in a run folder, our own before another program's; the path itself where it is a file.

    Raises UserError where there is none.
    """
    if path.is_dir():
        files = [path / name for name in (FILE, *(peer.file for peer in PEERS))]
        path = next((file for file in files if file.is_file()), path)
    if not path.is_file():
        raise UserError(
            f"{path} holds no {FILE}, nor a main.log of llm.c or log.txt of build-nanogpt; name the out_dir of a "
            "run, or a log"
        )
    return path


def stream_any(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a run folder or of a log, one by one, in little memory.

    Another program's log gives `train` and `eval` records without a `time`. Raises UserError where there is no log,
    or a line in it is none.
    """
    path = find_log(path)
    with path.open("rb") as file:
        first = next((line for _, line in finished_lines(file) if line.strip()), b"").decode(errors="replace")
        if (peer := _peer_of(first)) is not None:
            yield from _records(file, peer, path)
            return
    if path.name != FILE and not first.startswith("{"):
        raise UserError(
            f"{path} is no log of a run: its first line is none of {FILE}, of llm.c's main.log or of build-nanogpt's "
            "log.txt"
        )
    yield from stream(path)


def is_a_peers(path: Path) -> bool:
    """Whether a log is another program's, by its first line. Raises OSError."""
    with path.open("rb") as file:
        first = next((line for _, line in finished_lines(file) if line.strip()), b"").decode(errors="replace")
    return _peer_of(first) is not None


def _peer_of(first_line: str) -> PeerLog | None:
    return next((peer for peer in PEERS if peer.parse(first_line) is not None), None)


def _records(file: BinaryIO, peer: PeerLog, path: Path) -> Iterator[dict[str, Any]]:
    """The records of another program's log. Where its steps go back, a run went on from there: what came last counts.

    A first pass finds where that is. An evaluation of several figures becomes one record.
    """
    repeats, highest = Repeats(), -1
    for position, record in _parsed(file, peer, path):
        limit = record["step"] - (record["event"] == "train")  # of the steps before this line, up to which they count
        if highest > limit:
            repeats.see(position - 1, {"event": "resume", "step": limit})
        highest = record["step"]
    last: dict[str, Any] | None = None
    for position, record in _parsed(file, peer, path):
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


def _parsed(file: BinaryIO, peer: PeerLog, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The record in each line of another program's log that has one, with its position. Raises UserError."""
    for number, (position, line) in enumerate(finished_lines(file), start=1):
        if not line.strip():
            continue
        if (parsed := peer.parse(line.decode(errors="replace"))) is None:
            raise UserError(f"{path}, line {number} is none of {peer.whose}'s {peer.file}; remove that line")
        step, values = parsed
        if values:  # else it is of a kind that we do not know
            yield position, {"event": "train" if "loss" in values else "eval", "step": step, **values}


class PeerLogWriter:
    """Keeps a log in a peer's format beside ours: a tracker. A run that goes on cuts it back to where it does."""

    def __init__(self, folder: Path, peer: PeerLog) -> None:
        self.peer, self.path = peer, folder / peer.file
        folder.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        self.resumed_at: int | None = None

    def log(self, event: str, step: int, values: dict[str, Any]) -> None:
        if event == "start":
            self._keep(lambda at, measured: False)
        if event == "resume":
            self.resumed_at = step
            self._keep(lambda at, measured: at <= step)
        if event not in ("train", "eval"):
            return
        if event == "eval" and step == self.resumed_at:  # which is done again
            self._keep(lambda at, measured: at < step or not measured & values.keys())
        with self.path.open("a", encoding="utf-8") as file:
            for name, line in self.peer.lines.items():
                if name in values:
                    file.write(line.format(s=step - (name == "loss"), **values) + "\n")

    def _keep(self, wanted: Callable[[int, set[str]], bool]) -> None:
        """Leave the lines whose step, and names of values, are `wanted`; one that was cut short goes."""
        *lines, _ = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if (found := self.peer.parse(line)) and wanted(found[0], set(found[1]))]
        write_text(self.path, "".join(line + "\n" for line in kept))

    def close(self) -> None:
        """Every line is on disk already."""
