"""What a terminal, or the lack of one, gives a command: dashes, widths, closed streams; and marks in text files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import cyclopts
import pytest
from cyclopts.argument import ArgumentCollection

from gpt2.cli import make_app, read_values, without_dashes
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.formats.open import open_model
from gpt2.generation.text import read_prompt
from gpt2.tokenizers import ByteTokenizer
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train
from gpt2.training.recipes import parse_toml


def values_of(*words: str) -> dict[str, list[str]]:
    """Return the values that a command line gives, by the name of the argument."""
    found: dict[str, list[str]] = {}

    def keep(app: cyclopts.App, commands: tuple[str, ...], arguments: ArgumentCollection) -> NoReturn:
        read_values(arguments)
        found.update({a.name.lstrip("-"): [token.value for token in a.tokens] for a in arguments if a.tokens})
        raise KeyboardInterrupt

    app = make_app()
    app.config = (keep,)
    with pytest.raises(KeyboardInterrupt):
        app(without_dashes(words))
    return found


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("prepare - --out=x", "SOURCES", "/dev/stdin"),
        ("prepare --overwrite - --out=x", "SOURCES", "/dev/stdin"),
        ("prepare a --separator -", "separator", "-"),
        ("prepare a --val -", "val", "/dev/stdin"),
        ("tokenizer train a --special_tokens -", "special_tokens", "-"),
        ("sample m --start -", "start", "-"),
        ("sample -", "MODEL", "/dev/stdin"),
        ("train --sample_start -", "sample_start", "-"),
        ("plot r -o -", "out", "/dev/stdout"),
        ("report r --out=-", "out", "/dev/stdout"),
        ("inspect d --html -", "html", "/dev/stdout"),
        ("eval loss m d --plot -", "plot", "/dev/stdout"),
        ("eval hellaswag m --write_bin -", "write_bin", "/dev/stdout"),
        ("bench train --trace -", "trace", "/dev/stdout"),
        ("export hf m -", "OUT", "/dev/stdout"),
    ],
)
def test_a_dash_is_a_file_where_a_file_belongs(line: str, name: str, value: str) -> None:
    assert values_of(*line.split())[name] == [value]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("train --out_dir=~/x", "out_dir", "H/x"),
        ("train --dataset ~/d", "dataset", "H/d"),
        ("train --init_from=~", "init_from", "H"),
        ("train ~/a.toml", "RECIPE", "H/a.toml"),
        ("prepare ~/a b", "SOURCES", "H/a"),
        ("prepare a --tokenizer=~/t", "tokenizer", "H/t"),
        ("plot r -o ~/p.png", "out", "H/p.png"),
        ("sample ~/m", "MODEL", "H/m"),
        ("sample ~nobody-here/m", "MODEL", "~nobody-here/m"),
        ("sample m --start=~/m", "start", "~/m"),
        ("train --wandb_project=~", "wandb_project", "~"),
    ],
)
def test_a_tilde_is_a_home_folder_where_a_path_belongs(
    line: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "H")
    assert values_of(*line.split())[name][0] == value


def test_a_tilde_in_a_setting_is_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a prompt")
    assert TrainConfig(out_dir="~/x", dataset=Path("~/d")).out_dir == f"{tmp_path}/x"
    assert parse_toml('data_dir = "~/x"', "x.toml") == {"data_dir": f"{tmp_path}/x"}
    assert read_prompt("FILE:~/p.txt") == "a prompt"
    for opened in (open_model, open_dataset):
        with pytest.raises(UserError, match=f"{tmp_path}/empty"):
            (tmp_path / "empty").mkdir(exist_ok=True)
            opened("~/empty")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("train --compile --no-compile", "compile", False),
        ("train --no-compile --compile", "compile", True),
        ("train --compile --compile", "compile", True),
        ("train --compile=false --compile", "compile", True),
        ("train --batch_size=1 --batch-size=2", "batch_size", 2),
        ("train --sample_start=a --sample_start=b", "sample_start", ("a", "b")),
    ],
)
def test_of_an_option_given_twice_the_last_one_counts(line: str, name: str, value: object) -> None:
    _, bound, _ = make_app().parse_args(line.split())
    assert getattr(bound.arguments["config"], name) == value


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
