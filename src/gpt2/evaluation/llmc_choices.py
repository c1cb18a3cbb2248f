"""llm.c's file of multiple-choice tasks, `hellaswag_val.bin` (llm.c, dev/data/data_common.py, `write_evalfile`).

A header of 256 int32: magic, version, number of tasks, bytes of the largest one. Then a stream of uint16, for each
task: a mark, its bytes with these two words, its number, its label, the number of endings, and for the context and
for each ending how many tokens follow.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2.errors import UserError
from gpt2.evaluation.choices import Task
from gpt2.files import publish

MAGIC, VERSION = 20240522, 1
HEADER_BYTES = 1024
MARK = 65535
ENDINGS = 4
"""How many llm.c's evaluation takes."""


def is_llmc_choices(path: Path) -> bool:
    """Whether a file begins as llm.c's tasks do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def write(tasks: Sequence[Task], path: Path) -> None:
    """Write the tasks to `path`. Raises UserError for what the format cannot hold."""
    if not 0 < len(tasks) < MARK + 1:
        raise UserError(f"{path} cannot hold {len(tasks)} tasks, only 1 to {MARK}; use --limit")
    stream: list[int] = []
    largest = 0
    for number, task in enumerate(tasks):
        parts = (task.context, *task.endings)
        words = [number, task.label, len(task.endings), *(w for tokens in parts for w in (len(tokens), *tokens))]
        size = 2 * (len(words) + 2)
        if len(task.endings) != ENDINGS or size > MARK or max(map(max, parts)) >= MARK:
            raise UserError(
                f"task {number} does not fit {path}: llm.c takes {ENDINGS} endings, {MARK} bytes and token ids below "
                f"{MARK}"
            )
        stream += [MARK, size, *words]
        largest = max(largest, size)
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:4] = MAGIC, VERSION, len(tasks), largest
    with publish(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.write(np.array(stream, dtype="<u2").tobytes())


def read(path: Path, limit: int | None = None) -> list[Task]:
    """The first `limit` tasks of a file, or all. Raises UserError for a file that is not as described above."""
    data = path.read_bytes()
    header = np.frombuffer(data[:HEADER_BYTES][: len(data) // 4 * 4], dtype="<i4").tolist()
    if len(header) < HEADER_BYTES // 4 or header[1] != VERSION or len(data) % 2:
        raise UserError(f"{path} is no file of llm.c's tasks of version {VERSION}; make it again")
    stream = np.frombuffer(data, dtype="<u2", offset=HEADER_BYTES).tolist()
    tasks: list[Task] = []
    place = 0
    for number in range(header[2] if limit is None else min(limit, header[2])):
        words = stream[place : place + stream[place + 1] // 2] if place + 1 < len(stream) else []
        if (task := _parse(words, number)) is None:
            raise UserError(f"{path}: task {number} of {header[2]} is damaged; make the file again")
        tasks.append(task)
        place += len(words)
    if not tasks:
        raise UserError(f"{path} holds no tasks")
    return tasks


def _parse(words: list[int], number: int) -> Task | None:
    """The task that these words of the stream are; None where they are none."""
    if len(words) < 6 or words[:3] != [MARK, 2 * len(words), number]:
        return None
    label, count = words[3:5]
    parts: list[list[int]] = []
    place = 5
    while place < len(words):
        begin, place = place + 1, place + 1 + words[place]
        parts.append(words[begin:place])
    is_whole = place == len(words) and len(parts) == count + 1 and count > 1 and label < count and all(parts)
    return Task(parts[0], parts[1:], [len(tokens) for tokens in parts[1:]], label) if is_whole else None
