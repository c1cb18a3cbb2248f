"""What a terminal, or the lack of one, gives a command: dashes, widths, closed streams; and marks in text files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.cli import with_standard_input
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.generation.engine import read_prompt
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.loop import train


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["prepare", "-", "--out=x"], ["prepare", "/dev/stdin", "--out=x"]),
        (["prepare", "a", "-", "--separator", "-"], ["prepare", "a", "/dev/stdin", "--separator=-"]),
        (["sample", "m", "--start", "-"], ["sample", "m", "--start=-"]),
        (["train", "--sample_start", "-"], ["train", "--sample_start=-"]),
        (["plot", "r", "-o", "-"], ["plot", "r", "-o", "/dev/stdout"]),
        (["sample", "m"], ["sample", "m"]),
    ],
)
def test_a_dash_is_a_file_where_a_file_belongs(given: list[str], expected: list[str]) -> None:
    assert with_standard_input(given) == expected


def test_a_dash_separates_documents(tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("".join(f"doc {i}-" for i in range(50)))
    assert gpt2_command("prepare", "x.txt", "--tokenizer=byte", "--separator", "-", "--out=s")[0] == 0
    assert json.loads(Path("s/dataset.json").read_text())["documents"] == 50


@pytest.mark.parametrize("columns", ["0", "1", "2", "-1", "many", ""])
def test_help_ends_whatever_the_width_is_said_to_be(columns: str) -> None:
    command = [sys.executable, "-m", "gpt2", "sample", "--help"]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": columns}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "--temperature" in done.stdout


def test_a_process_without_standard_output_has_no_traceback(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=1))
    line = f"exec {sys.executable} -m gpt2 sample {tmp_path}/run --max_new_tokens=1 --device=cpu >&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_byte_order_mark_is_no_text(tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.txt").write_bytes(b"\xef\xbb\xbf" + b"some words \xef\xbb\xbf and more\n" * 100)
    assert gpt2_command("prepare", "b.txt", "--tokenizer=char", "--out=d")[0] == 0
    dataset = open_dataset("d")
    text = dataset.tokenizer.decode(dataset.splits["train"][:14].tolist())
    assert text == "some words \ufeff a"[:14]  # only the first is a mark


def test_a_prompt_of_a_file_keeps_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfA\r\nB")
    assert read_prompt(f"FILE:{tmp_path}/p.txt") == "A\r\nB"
    (tmp_path / "p.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        read_prompt(f"FILE:{tmp_path}/p.txt")


def test_blank_lines_between_tasks_are_not_tasks(tmp_path: Path) -> None:
    task = {"activity_label": "A", "ctx": "The man he", "endings": ["ran.", "sat.", "ate.", "hid."], "label": 0}
    (tmp_path / "h.jsonl").write_text(f"\n{json.dumps(task)}\n\n  \n{json.dumps(task)}\n\n")
    assert len(read_tasks(tmp_path / "h.jsonl", ByteTokenizer())) == 2


def test_a_single_task_has_no_standard_error(tiny, tmp_path: Path, gpt2_command) -> None:
    task = {"activity_label": "A", "ctx": "the", "endings": [" cat", " mat", " dogs", " hill"], "label": 0}
    (tmp_path / "h.jsonl").write_text(json.dumps(task))
    train(tiny(max_iters=1))
    status, out, err = gpt2_command(
        "eval", "hellaswag", tmp_path / "run", f"--data={tmp_path}/h.jsonl", "--device=cpu"
    )
    assert status == 0, err
    assert "nan" not in out + err
    assert "±" not in out
