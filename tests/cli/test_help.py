"""The texts of `--help`, and arguments that need more than a conversion."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import cyclopts
import pytest

from gpt2.cli import SECTIONS, make_app
from gpt2.data.dataset import open_dataset
from gpt2.training.config import TrainConfig
from gpt2.training.setting import GROUPS


def commands(app: cyclopts.App) -> Iterator[cyclopts.App]:
    for name in app:
        if not name.startswith("-"):
            yield app[name]
            yield from commands(app[name])


def test_train_shows_its_settings_in_groups_in_the_order_of_the_fields(
    gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    status, out, _ = gpt2_command("train", "--help")
    assert status == 0
    assert re.findall("^╭─ (.+?) ─", out, re.MULTILINE) == ["Arguments", "Parameters", *GROUPS]
    settings = ["--" + field.name for field in fields(TrainConfig)]
    shown = re.findall(r"^│ (--[\w-]+)", out, re.MULTILINE)
    assert [flag for flag in shown if flag in settings] == settings


def test_an_option_is_read_with_dashes_too(gpt2_command) -> None:
    for option in ("--max-iters", "--max_iters"):
        status, _, err = gpt2_command("train", option, "many")
        assert status == 2 and f"{option} is 'many'" in err


def test_every_command_and_argument_has_a_sentence_of_help() -> None:
    found = list(commands(make_app()))
    assert len(found) == 34
    missing = []
    for command in found:
        if not command.help.splitlines()[0].endswith("."):
            missing.append((command.name, command.help))
        if command.default_command is not None:
            arguments = command.assemble_argument_collection(parse_docstring=True)
            missing += [
                (command.name, a.name) for a in arguments if a.show and not str(a.parameter.help).endswith(".")
            ]
    assert missing == []


def test_help_shows_several_defaults_as_they_are_typed(gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    expected = {
        ("bench", "sample"): ["--batch_size", "[default: 1]"],
        ("bench", "serve"): ["--prompt_tokens", "[default: 16 256]"],
        ("tokenizer", "train"): ["--special_tokens", "--vocab_size", "[default: 4096]"],
        ("train",): ["--dataset", '[default: ""]', "--out_dir", "[default: out]"],
    }
    for words, texts in expected.items():
        status, out, _ = gpt2_command(*words, "--help")
        assert status == 0
        assert [text for text in texts if text not in out] == []
        assert re.findall(r"default: (?:\(|None)", out) == []


def test_help_groups_the_commands_by_task_and_begins_with_the_demo(gpt2_command) -> None:
    status, out, _ = gpt2_command("--help")
    assert status == 0
    assert re.findall("^╭─ (.+?) ─", out, re.MULTILINE) == list(SECTIONS)
    app = make_app()
    shown = re.findall("^│ ([a-z-]+) ", out, re.MULTILINE)
    listed = [name for names in SECTIONS.values() for name in names if name in app]
    assert shown == listed
    assert shown[0] == "demo"
    assert set(listed) == set(app) - {"-h"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["tok"], ["tokenizer"]), (["tokenizer", "dec"], ["decode"]), (["train", "--warmup"], ["--warmup_iters"])],
)
def test_bash_completes_commands_and_options(words: list[str], expected: list[str], gpt2_command) -> None:
    status, script, _ = gpt2_command("completion", "bash")
    assert status == 0
    line = f"COMP_WORDS=(gpt2 {' '.join(words)}); COMP_CWORD={len(words)}; _gpt2; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_completion_too(shell: str, gpt2_command) -> None:
    status, script, _ = gpt2_command("completion", shell)
    assert status == 0
    assert "learning_rate" in script
    assert gpt2_command("completion", "csh")[0] == 2


def test_a_separator_can_contain_escaped_white_space(
    tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_bytes(b"one\t\r\n" * 100)
    status, _, err = gpt2_command("prepare", "t.txt", "--tokenizer=byte", r"--separator=\t\r\n", "--out=d")
    assert status == 0, err
    dataset = open_dataset("d")
    assert dataset.split("train", 14)[0:14].tolist() == [*b"one\t\r\n", dataset.tokenizer.eot] * 2
