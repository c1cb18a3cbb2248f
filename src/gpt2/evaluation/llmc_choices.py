"""Reads and writes llm.c's file of multiple-choice tasks, `hellaswag_val.bin`.

It begins with a header of 256 int32: magic, version, number of tasks, bytes of the largest task. A stream of uint16
follows, for each task: a mark, its size in bytes including these two words, its index, its label, the number of
endings, and then the context and each ending as the number of its tokens followed by the tokens. See `write_evalfile`
in dev/data/data_common.py of llm.c.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2.errors import UserError
from gpt2.evaluation.choices import Task
from gpt2.files import publish

MAGIC, VERSION = 20240522, 1
"""First two numbers of the header."""
HEADER_BYTES = 1024
"""Size of the header in bytes."""
MARK = 65535
"""Word with which each task begins, and the largest uint16."""
ENDINGS = 4
"""Number of endings that llm.c's evaluation requires."""


def is_llmc_choices(path: Path) -> bool:
    """Return whether a file begins with the magic number of llm.c's tasks. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def write(tasks: Sequence[Task], path: Path) -> None:
    """Write the tasks to `path`. Raises UserError if the file format cannot hold them or writing fails."""
    if not 0 < len(tasks) < MARK + 1:
        raise UserError(f"{path} cannot hold {len(tasks)} tasks, only 1 to {MARK}; write fewer with --limit")
    stream: list[int] = []
    largest = 0
    for number, task in enumerate(tasks):
        texts = (task.context, *task.endings)
        words = [number, task.label, len(task.endings), *(w for tokens in texts for w in (len(tokens), *tokens))]
        size = 2 * (len(words) + 2)
        if len(task.endings) != ENDINGS or size > MARK or max(map(max, texts)) >= MARK:
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
    """Return the first `limit` tasks of a file, or all of them. Raises UserError for a file in another format."""
    data = path.read_bytes()
    header = np.frombuffer(data[:HEADER_BYTES][: len(data) // 4 * 4], dtype="<i4").tolist()
    if len(header) < HEADER_BYTES // 4 or header[1] != VERSION or len(data) % 2:
        raise UserError(f"{path} is not a file of llm.c's tasks of version {VERSION}; write it again")
    stream = np.frombuffer(data, dtype="<u2", offset=HEADER_BYTES).tolist()
    tasks: list[Task] = []
    offset = 0
    for number in range(header[2] if limit is None else min(limit, header[2])):
        words = stream[offset : offset + stream[offset + 1] // 2] if offset + 1 < len(stream) else []
        if (task := _parse(words, number)) is None:
            raise UserError(f"{path}: task {number} of {header[2]} is damaged; write the file again")
        tasks.append(task)
        offset += len(words)
    if not tasks:
        raise UserError(f"{path} holds no tasks; name another file")
    return tasks


def _parse(words: list[int], number: int) -> Task | None:
    """Return the task that these words of the stream describe; None if they do not describe task `number`."""
    if len(words) < 6 or words[:3] != [MARK, 2 * len(words), number]:
        return None
    label, count = words[3:5]
    texts: list[list[int]] = []
    offset = 5
    while offset < len(words):
        begin, offset = offset + 1, offset + 1 + words[offset]
        texts.append(words[begin:offset])
    is_complete = offset == len(words) and len(texts) == count + 1 and count > 1 and label < count and all(texts)
    return Task(texts[0], texts[1:], [len(tokens) for tokens in texts[1:]], label) if is_complete else None
