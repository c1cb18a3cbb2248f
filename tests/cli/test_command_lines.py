"""Odd command lines: each ends soon, with one line for a mistake; and numbers without sense are refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.bench.data import measure
from gpt2.data.dataset import open_dataset
from gpt2.errors import UserError
from gpt2.generation import text as text_module
from gpt2.generation.text import read_prompt
from gpt2.model import GPTConfig
from gpt2.spelling import counted, distance, near_path, nearest
from gpt2.training.budget import require_memory
from gpt2.training.config import BOUNDS, HINTS, TrainConfig


def test_odd_command_lines_end_soon_without_a_traceback() -> None:
    program = Path(__file__).with_name("command_lines.py")
    done = subprocess.run([sys.executable, program, "150", "7"], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1].endswith("faults {}"), done.stdout + done.stderr


def test_every_number_of_a_run_has_a_smallest_and_a_largest_value() -> None:
    kinds = (int, float, int | None, float | None, int | str, int | str | None)
    numbers = {name for name, hint in HINTS.items() if hint in kinds}
    assert numbers == {name for name, _ in BOUNDS}
    for name, bounds in BOUNDS:
        for value in (-1, 10**40):
            with pytest.raises(UserError, match=f"{name} is"):
                bounds.check(name, value)


@pytest.mark.parametrize(
    "settings",
    [
        {"total_batch_size": 10**9, "batch_size": 1, "block_size": 1},
        {"batch_size": 10**6, "gradient_accumulation_steps": 100},
    ],
)
def test_products_of_settings_have_bounds_too(settings: dict) -> None:
    with pytest.raises(UserError, match="at most"):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"n_embd": 10**6, "n_layer": 4096}, "the parameters of the model need at least"),
        ({"vocab_size": 10**9}, "the parameters of the model need at least"),
        ({"batch_size": 10**6}, "a micro-batch and the state of the training need at least"),
        ({"block_size": 10**6, "flash": False}, "a micro-batch and the state of the training need at least"),
        ({"block_size": 10**6, "document_mask": True}, "a micro-batch and the state of the training need at least"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused(settings: dict, what: str) -> None:
    config = TrainConfig(**{"vocab_size": 50257, "device": "cpu", "dtype": "float32"} | settings).resolved()
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    if shape["n_embd"] == 10**6:
        shape["n_head"] = 1
    with pytest.raises(UserError, match=f"{what} .* GB are free on cpu"):
        require_memory(config, GPTConfig(**shape))


def test_an_ordinary_model_fits_into_memory() -> None:
    config = TrainConfig(model="d6", batch_size=1, block_size=64, device="cpu", vocab_size=100).resolved()
    require_memory(config, GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=64, vocab_size=100))


def test_a_batch_that_cannot_fit_into_memory_is_not_measured(dataset: Path) -> None:
    tokens = open_dataset(str(dataset)).split("train", 1024)
    with pytest.raises(UserError, match="GB are free"):
        measure(tokens, batch_size=10**7, block_size=10**6, steps=1, order="random")


def test_a_prompt_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="larger than 67,108,864 bytes"):
        read_prompt("FILE:/dev/zero")
    monkeypatch.setattr(text_module, "LARGEST_PROMPT", 3)
    (tmp_path / "p.txt").write_text("abc")
    assert read_prompt(f"FILE:{tmp_path}/p.txt") == "abc"
    (tmp_path / "p.txt").write_text("abcd")
    with pytest.raises(UserError, match="larger than 3 bytes"):
        read_prompt(f"FILE:{tmp_path}/p.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --interactive", "Unknown option: --interactive. gpt2 train --help lists the options."),
        ("help train", "Give gpt2 --help, or gpt2 COMMAND --help."),
        ("export hf r", "gpt2 export needs OUT, which is missing; see gpt2 export --help"),
        ("eval loss r", "gpt2 eval loss needs DATASET, which is missing; see gpt2 eval loss --help"),
        ("sweep --dataset=d", "gpt2 sweep needs --out, which is missing; see gpt2 sweep --help"),
        ("train --batch-sise=3", "Did you mean --batch_size?"),
        ("sample m --temprature 1", "Did you mean --temperature?"),
        ("evaluate", "Available commands: demo, list, "),
        ("eval los", 'Did you mean "loss"?'),
        ("train --nproc=100000", "100000 processes take at least"),
        ("train --nproc=" + "9" * 5000, "give a number of processes"),
        ("prepare t --part=" + "9" * 5000 + "/2", "give it as I/N"),
        ("prepare t --workers=100000", "workers is 100000; it must be at least 1 and at most 1,024"),
        ("report r --port=65536", "port is 65536; it must be 0 to 65535"),
        ("train --ui-port=-1", "ui_port is -1"),
        ("bench data d --steps=2147483648", "steps is 2147483648"),
        ("plan --nproc=0", "nproc is 0"),
        ("sample m --top_k=9223372036854775808", "top_k is 9223372036854775808"),
        ("demo --minutes=nan", "minutes is nan; it must be a finite number"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(line: str, message: str, gpt2_command) -> None:
    status, out, err = gpt2_command(*line.split())
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_operation_without_memory_gives_one_line(gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 8. TiB")

    monkeypatch.setattr("gpt2.reporting.picture.plot_runs", fails)
    status, _, err = gpt2_command("plot", "r")
    assert (status, err) == (
        2,
        "gpt2: there is not enough memory (Unable to allocate 8. TiB); give smaller numbers\n",
    )


def test_a_link_to_itself_is_no_run_and_no_text(
    tmp_path: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("link")
    for line in (["report", "link"], ["plot", "link"], ["prepare", "link"]):
        status, _, err = gpt2_command(*line)
        assert status == 2
        assert "Traceback" not in err


def test_the_processes_run_the_command_line_that_main_was_given(
    gpt2_command, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("torch.distributed.run.run", lambda options: started.append(options.training_script_args))
    monkeypatch.setattr(sys, "argv", ["pytest", "another", "command"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert gpt2_command("eval", "loss", "m", "d", "--nproc=2") == (0, "", "")
    assert started == [["eval", "loss", "m", "d"]]


def test_names_are_near_if_few_letters_differ() -> None:
    assert distance("kitten", "sitting") == 3
    assert distance("ab", "ba") == 1
    assert nearest("--Batch_Sise", ["--batch-size", "--block-size"]) == "--batch-size"
    assert nearest("interactive", ["temperature"]) is None
    assert nearest("x", []) is None


def test_a_misspelt_path_is_found_in_folders_that_may_be_misspelt(tmp_path: Path) -> None:
    (tmp_path / "data" / "reference").mkdir(parents=True)
    (tmp_path / "data" / "other").mkdir()
    there = str(tmp_path / "data" / "reference")
    for name in ("data/refernce", "dat/reference", "dta/Reference"):
        assert near_path(str(tmp_path / name)) == there
    for name in ("data/reference", "data/poems", "nothing/reference"):
        assert near_path(str(tmp_path / name)) is None
    assert near_path("\0") is None


def test_a_noun_is_in_the_plural_unless_there_is_one() -> None:
    numbers = [counted(n, noun) for noun in ("file", "process") for n in (0, 1, 2000)]
    assert numbers == ["0 files", "1 file", "2,000 files", "0 processes", "1 process", "2,000 processes"]
