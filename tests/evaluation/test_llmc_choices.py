"""llm.c's file of tasks has the bytes that its own writer gives."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gpt2.errors import UserError
from gpt2.evaluation.choices import Task
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.evaluation.llmc_choices import read, write
from gpt2.tokenizers import ByteTokenizer, gpt2_tokenizer

ONE = Task([464, 3797, 3332], [[319], [739, 262], [1497, 2952, 13], [0]], [1, 2, 3, 1], 2)
# ONE as written by `write_evalfile` in llm.c's dev/data/data_common.py
STREAM = [65535, 40, 0, 2, 4, 3, 464, 3797, 3332, 1, 319, 2, 739, 262, 3, 1497, 2952, 13, 1, 0]
SHA256 = "913ea67e60a5645f42951d43159410a89bf48afd2fb5d3c59aa41409f578c9ba"
TWO = Task([7], [[1, 2], [3], [4], [5]], [2, 1, 1, 1], 0)


def test_the_bytes_are_llmcs(tmp_path: Path) -> None:
    write([ONE], tmp_path / "t.bin")
    data = (tmp_path / "t.bin").read_bytes()
    assert np.frombuffer(data[:1024], "<i4")[:5].tolist() == [20240522, 1, 1, 40, 0]
    assert np.frombuffer(data[1024:], "<u2").tolist() == STREAM
    assert hashlib.sha256(data).hexdigest() == SHA256


def test_written_tasks_are_read_back(tmp_path: Path) -> None:
    write([ONE, TWO], tmp_path / "t.bin")
    assert read(tmp_path / "t.bin") == [ONE, TWO]
    assert read(tmp_path / "t.bin", limit=1) == [ONE]
    assert read_tasks(tmp_path / "t.bin", None) == [ONE, TWO]


def test_the_file_of_the_real_tasks_gives_them_back(tmp_path: Path, shared_data: Path, gpt2_vocabulary: None) -> None:
    tasks = read_tasks(shared_data / "hellaswag" / "hellaswag_val.jsonl", gpt2_tokenizer(), limit=300)
    write(tasks, tmp_path / "t.bin")
    assert read_tasks(tmp_path / "t.bin", gpt2_tokenizer()) == tasks


@pytest.mark.parametrize(
    "task",
    [
        Task([1], [[1], [2], [3]], [1, 1, 1], 0),
        Task([65535], [[1]] * 4, [1] * 4, 0),
        Task([1] * 33_000, [[1]] * 4, [1] * 4, 0),
    ],
)
def test_tasks_that_the_format_cannot_hold_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 1 does not fit"):
        write([ONE, task], tmp_path / "t.bin")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="cannot hold 65536 tasks"):
        write([ONE] * 65536, tmp_path / "t.bin")


def test_tokens_go_with_gpt2s_vocabulary_and_one_rendering(tmp_path: Path) -> None:
    write([ONE], tmp_path / "t.bin")
    with pytest.raises(UserError, match="GPT-2's tokens"):
        read_tasks(tmp_path / "t.bin", ByteTokenizer())
    with pytest.raises(UserError, match="omit --rendering"):
        read_tasks(tmp_path / "t.bin", None, "lm-eval")


def test_an_empty_ending_is_damage(tmp_path: Path) -> None:
    write([ONE], tmp_path / "t.bin")
    header = (tmp_path / "t.bin").read_bytes()[:1024]
    stream = [65535, 28, 0, 0, 4, 1, 7, 0, 1, 1, 1, 2, 1, 3]
    (tmp_path / "t.bin").write_bytes(header + np.array(stream, "<u2").tobytes())
    with pytest.raises(UserError, match="task 0 of 1 is damaged"):
        read(tmp_path / "t.bin")


def test_every_damage_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A file that is cut, or has a changed word, gives an error, or tasks in which only tokens or a label differ."""
    path = tmp_path / "t.bin"
    write([ONE, TWO], path)
    data = path.read_bytes()
    for end in [*range(4, 1024, 97), *range(1024, len(data))]:
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"t\.bin"):
            read(path)
    content = {3, 6, 7, 8, 10, 12, 13, 15, 16, 17, 19}  # the label, and tokens
    for word in range(len(STREAM)):
        for value in (1, 5, 9999, 65535):
            changed = np.frombuffer(data, "<u2").copy()
            changed[512 + word] = value
            path.write_bytes(changed.tobytes())
            if value == STREAM[word] or (word in content and (word > 3 or value < 4)):
                assert len(read(path)) == 2
            else:
                with pytest.raises(UserError, match="task 0 of 2 is damaged"):
                    read(path)
