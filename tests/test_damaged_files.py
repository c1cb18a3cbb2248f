"""Damaged and hand-edited files of this program end a command with one line, in little time and memory."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from damaged_files import fit_manifest, survey

from gpt2.data.shards import open_shard
from gpt2.errors import UserError
from gpt2.json_file import MOST_BYTES, read_object
from gpt2.reporting.figures import report_on
from gpt2.runlog.curves import name_of, printable, settings_of
from gpt2.training.loop import train

MUTANTS = int(os.environ.get("GPT2_TEST_MUTANTS", "500")) // 7


def test_a_sample_of_mutants_gives_no_traceback() -> None:
    ended, wrong = survey(MUTANTS, MUTANTS // 2, 0)
    assert wrong == []
    assert ended["status 0"] > 0  # what is damaged is not always read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read (Expecting value"),
        (b"[]", "holds a list, not an object"),
        (b"\xff{}", "cannot be read ('utf-8' codec"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}", "an integer of 5,000 digits"),
        (b"{}" + b" " * MOST_BYTES, "it is larger than 33,554,432 bytes"),
        (b"{}", "has no step"),
        (b'{"step": "3"}', 'has step="3", not a count'),
        (b'{"step": -1}', "has step=-1, not a count"),
        (b'{"step": true}', "has step=true, not a count"),
        (b'{"step": 1e3}', "has step=1000.0, not a count"),
        (b'{"step": ' + b"9" * 30 + b"}", "has step=a huge integer, not a count"),
        (b'{"step": [[]]}', "has step=a list, not a count"),
        (b'{"step": "\\ud800' + b"x" * 100 + b'"}', "not a count; start again"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_object(path, "start again").integer("step")
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert str(error.value).endswith("; start again")
    assert len(str(error.value)) < 300 + len(str(path))


def test_numbers_are_finite_and_names_are_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '{"a": NaN, "b": Infinity, "c": 1e999, "d": "\\u0000", "e": "x/", "f": "\\ud800", "g": "", "h": ".."}'
    )
    about = read_object(path, "write it again")
    for key in "abc":
        with pytest.raises(UserError, match="not a finite number"):
            about.number(key)
    for key in "dfg":
        with pytest.raises(UserError, match="not the name of a file"):
            about.file_name(key)
    assert about.file_name("e") == "x"
    with pytest.raises(UserError, match="is not a file"):
        read_object(tmp_path, "write it again")


def test_a_header_of_npy_is_not_evaluated_beyond_its_bounds(tmp_path: Path) -> None:
    intact = tmp_path / "x.npy"
    np.save(intact, np.arange(100, dtype="<u2"))
    start = intact.read_bytes()
    changes = [
        (b"(100,)", b"(" * 6), (b"(100,)", b"(1e9,)"), (b"(100,)", b"(-1,) "), (b"(100,)", b"(9**9)"),
        (b"'<u2'", b"'|O' "), (b"'<u2'", b"[1,2]"), (b"'<u2'", b"  x  "), (b"False", b"Fal\xe9e"), (b"{", b"\0"),
        (b"\x01\x00v\x00", b"\x02\x00\xff\xff"), (b"\x01\x00v\x00", b"\x03\x00v\x00"), (b"}", b" "),
        (b"\x01\x00v\x00", b"\x09\x00v\x00"),
    ]  # fmt: skip
    for number, (old, new) in enumerate(changes):
        assert old in start
        path = tmp_path / f"{number}.npy"
        path.write_bytes(start.replace(old, new, 1))
        with pytest.raises(UserError, match=r"is a damaged \.npy|holds|has \d+ bytes"):
            open_shard(path)


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.bin")
    with pytest.raises(UserError, match="is not a file"):
        open_shard(tmp_path / "train.bin")


@pytest.mark.parametrize("name", [b"r\xff\xfe", b"$x_1^2$", rb"\alpha_$", b'<script>"%s', b"a\nb", b"_x"])
def test_any_name_of_a_run_is_drawn(tmp_path: Path, gpt2_command, name: bytes) -> None:
    run = tmp_path / os.fsdecode(name)
    run.mkdir()
    records = (
        '{"event": "train", "step": 1, "loss": 3.0}\n{"event": "eval", "step": 1, "acc_norm": 0.3, "acc": 0.2}\n'
    )
    (run / "log.jsonl").write_text(records)
    for arguments in (
        ("plot", run, run, "-o", tmp_path / "p.svg"),
        ("report", run, "-o", tmp_path / "r.html"),
        ("report", run, run, "--json", "-o", tmp_path / "r.html"),
    ):
        status, _, err = gpt2_command(*arguments)
        assert (status, err.count("\n")) == (0, 1), err
    assert printable(name_of(run)) == name_of(run)


def test_settings_that_reports_cannot_calculate_with_are_omitted(tmp_path: Path) -> None:
    settings = (
        f"max_iters = -1\nn_layer = 0x{'f' * 5000}\nseed = 0x{'f' * 5000}\ndataset = 1979-05-27\nx = [[1]]\ny = 2"
    )
    (tmp_path / "config.toml").write_text(settings)
    (tmp_path / "log.jsonl").write_text('{"event": "train", "step": 1}\nrubbish\n')
    assert settings_of(tmp_path) == {"y": 2}
    assert "1 line of the log cannot be read and is skipped" in report_on(tmp_path).facts()


def test_a_checkpoint_without_settings_is_resumed(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2))
    folder = tmp_path / "run" / "checkpoints" / "step_0000002"
    about = json.loads((folder / "state.json").read_text())
    del about["train"], about["dataset"]
    (folder / "state.json").write_text(json.dumps(about))
    fit_manifest(folder)
    assert train(tiny(max_iters=3, init_from="resume")).step == 3


@pytest.mark.parametrize(("key", "value"), [("n_layer", 1 << 30), ("n_embd", 1 << 20), ("n_head", 3)])
def test_a_shape_that_the_weights_do_not_have_takes_no_memory(tiny, tmp_path: Path, key: str, value: int) -> None:
    train(tiny(max_iters=2))
    folder = tmp_path / "run" / "checkpoints" / "step_0000002"
    about = json.loads((folder / "state.json").read_text())
    about["model"][key] = value
    (folder / "state.json").write_text(json.dumps(about))
    fit_manifest(folder)
    with pytest.raises(UserError, match=r"do not fit its configuration|describes no GPT-2"):
        train(tiny(max_iters=3, init_from="resume", **{key: None}))
