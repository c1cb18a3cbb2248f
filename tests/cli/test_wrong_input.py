"""Commands as a user types them. A mistake gives one clear line and status 2, and nothing is lost."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mistakes import WRONG, words_of

from gpt2.checkpoint import folder_of, saved_steps
from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.training.loop import train


@pytest.fixture
def world(tmp_path: Path, dataset: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset `d`, a finished run `r` and damaged copies of both."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "d")
    train(tiny(out_dir="r", dataset="d", max_iters=2))
    shutil.copytree("d", "truncated")
    Path("truncated/val.bin").write_bytes(Path("d/val.bin").read_bytes()[:-7])
    shutil.copytree("d", "foreign")
    tokens = np.fromfile("foreign/train.bin", dtype="<u2")
    tokens[5] = 999
    tokens.tofile("foreign/train.bin")
    shutil.copytree("r", "corrupt")
    for step in saved_steps(Path("corrupt")):
        (folder_of(Path("corrupt"), step) / "model.safetensors").write_bytes(b"rubbish")
    Path("a_file").write_text("x")
    Path("mine.txt").write_text("some words to learn from\n" * 20)
    Path("nanogpt.py").write_text("import os\nbatch_size = 3\n")
    Path("bad.toml").write_text("batch_sise = 3\n")
    Path("prompts.toml").write_text('sample_start = ["a", 3]\n')
    Path("float.toml").write_text("batch_size = 3.5\n")
    Path("latin.txt").write_bytes("é".encode("latin-1") * 100)
    Path("empty").mkdir()
    Path("there.json").write_text("{}")
    task = {"ctx": "the cat sat", "endings": ["on a mat", "and saw", "two dogs", "the hill"], "label": 0}
    Path("h.jsonl").write_text(json.dumps(task) + "\n")
    Path("long.jsonl").write_text(json.dumps(task | {"endings": ["on a mat", "on a mat on a mat"]}) + "\n")
    Path("broken.jsonl").write_text(json.dumps(task) + "\n{\n")
    export(open_model("r"), "nanogpt", Path("nano"), print)
    Path("nano/meta.pkl").unlink()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_each_mistake_gives_one_line_and_loses_nothing(world: Path, gpt2_command) -> None:
    before = contents(world)
    wrong = []
    for line, message in WRONG:
        status, out, err = gpt2_command(*words_of(line))
        last = err.splitlines()[-1] if err else ""
        one_line = last.startswith("gpt2: ") and message in last and "Traceback" not in err
        if not (status == 2 and one_line and out == "" and contents(world) == before):
            wrong.append((line, status, out, err))
    assert wrong == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", "--dataset=d", "--out_dir="], "--out_dir"),
        (["train", "--dataset=d", "--data_dir", ""], "--data_dir"),
        (["train", ""], "RECIPE"),
        (["prepare", "mine.txt", "-o", ""], "-o"),
        (["prepare", "mine.txt", "--out="], "--out"),
        (["prepare", "mine.txt", ""], "SOURCES"),
        (["export", "hf", "r", ""], "OUT"),
        (["sample", ""], "MODEL"),
        (["eval", "loss", "r", ""], "DATASET"),
        (["eval", "hellaswag", "r", "--data="], "--data"),
        (["list", "runs", ""], "FOLDERS"),
        (["tokenizer", "encode", "x", "--tokenizer="], "--tokenizer"),
        (["sweep", "--dataset=d", "-o", ""], "-o"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(world: Path, words: list[str], name: str, gpt2_command) -> None:
    before = contents(world)
    assert gpt2_command(*words) == (2, "", f"gpt2: {name} is empty; give a path or a name\n")
    assert contents(world) == before


def test_every_spelling_of_a_flag_means_the_same(world: Path, gpt2_command) -> None:
    common = words_of("train TINY --dataset=d --overwrite --out_dir=s")
    configs = []
    for spelling in (
        ["--batch_size=3", "--bias=False"],
        ["--batch-size", "3", "--no-bias"],
        ["--batch-size=3", "--bias=false"],
    ):
        assert gpt2_command(*common, *spelling)[0] == 0
        configs.append(Path("s/config.toml").read_text())
    assert configs[0] == configs[1] == configs[2]
    assert "batch_size = 3\n" in configs[0]
    assert "bias = false\n" in configs[0]


def test_a_flag_overrides_the_recipe_and_the_recipe_the_default(world: Path, gpt2_command) -> None:
    Path("mine.toml").write_text('dataset = "d"\nbatch_size = 5\nlearning_rate = 1\nout_dir = "p"\n')
    status, _, err = gpt2_command(*words_of("train mine.toml TINY --batch_size=3"))
    assert status == 0, err
    config = Path("p/config.toml").read_text()
    assert "batch_size = 3\n" in config
    assert "learning_rate = 1.0\n" in config
    assert "beta1 = 0.9\n" in config


def test_a_resume_needs_only_the_run(world: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("train", "--init_from=resume", "--out_dir=r", "--max_iters=4")
    assert status == 0, err
    assert saved_steps(Path("r"))[0] == 4


def test_a_resumed_run_keeps_its_settings_except_for_flags(world: Path, gpt2_command) -> None:
    Path("mine.toml").write_text('dataset = "d"\nlearning_rate = 1e-3\nmodel = "d6"\nout_dir = "m"\n')
    line = words_of("train mine.toml TINY --learning_rate=5e-4 --init_from=auto")
    assert gpt2_command(*line)[0] == 0
    status, _, err = gpt2_command("train", "mine.toml", "--init_from=auto", "--max_iters=2")
    assert status == 0, err
    assert "keeps learning_rate=0.0005; --learning_rate=0.001 would change it" in err
    config = Path("m/config.toml").read_text()
    assert "learning_rate = 0.0005\n" in config
    assert "max_iters = 2\n" in config
    assert 'init_from = "auto"\n' in config


def test_a_copied_run_is_resumed_in_its_new_folder(world: Path, gpt2_command) -> None:
    shutil.copytree("r", "out")
    before = contents(world / "r")
    status, _, err = gpt2_command("train", "--init_from=resume", "--max_iters=4")
    assert status == 0, err
    assert saved_steps(Path("out"))[0] == 4
    assert contents(world / "r") == before


def test_a_recipe_can_set_init_from(world: Path, gpt2_command) -> None:
    Path("auto.toml").write_text('dataset = "d"\nout_dir = "a"\ninit_from = "auto"\n')
    for steps in (1, 2):
        status, _, err = gpt2_command(*words_of(f"train auto.toml TINY --max_iters={steps} --lr_decay_iters=2"))
        assert status == 0, err
        assert saved_steps(Path("a"))[0] == steps


def test_auto_does_not_train_a_fine_tuning_recipe_from_scratch(world: Path, gpt2_command) -> None:
    Path("tune.toml").write_text('dataset = "d"\nout_dir = "a"\ninit_from = "r"\n')
    status, _, err = gpt2_command(*words_of("train tune.toml TINY --init_from=auto"))
    assert status == 2
    assert "would start from random weights, but tune.toml fine-tunes r" in err
    assert not Path("a").exists()
    status, _, err = gpt2_command(*words_of("train tune.toml --block_size=16 --max_iters=1"))
    assert status == 0, err
    status, _, err = gpt2_command(*words_of("train tune.toml --init_from=auto --max_iters=2"))
    assert status == 0, err
    assert saved_steps(Path("a"))[0] == 2


def test_a_resumed_run_keeps_its_batch_size(world: Path, gpt2_command) -> None:
    Path("big.toml").write_text('dataset = "d"\nout_dir = "r"\ntotal_batch_size = 128\n')
    status, _, err = gpt2_command("train", "big.toml", "--init_from=resume", "--max_iters=3")
    assert status == 0, err
    assert "tokens per step 64" in err
    assert "keeps total_batch_size=unset" in err


def test_a_flag_for_one_batch_size_replaces_the_other_one_of_the_recipe(world: Path, gpt2_command) -> None:
    Path("mine.toml").write_text('dataset = "d"\ntotal_batch_size = 192\nout_dir = "m"\n')
    status, _, err = gpt2_command(*words_of("train mine.toml TINY --gradient_accumulation_steps=3"))
    assert status == 0, err
    assert "tokens per step 288" in err


def test_a_closed_pipe_ends_the_command_without_a_traceback(world: Path) -> None:
    command = f"{sys.executable} -m gpt2 sample r --max_new_tokens=20000 --device=cpu | head -c 10"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert "Traceback" not in done.stderr
    assert len(done.stdout) == 10


def test_eval_prints_one_json_object(world: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command("eval", "loss", "r", "d", "--json", "--device=cpu")
    assert status == 0
    figures = json.loads(out)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    assert figures["tokens"] == 2020  # all of the 2,021 validation tokens except the first, which has no context


def test_train_prints_one_json_object(world: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command(*words_of("train TINY --dataset=d --eval_only --eval_iters=0 --json"))
    assert status == 0
    assert json.loads(out)["val_loss"] == pytest.approx(3.1, abs=0.2)  # a little above ln 22


def test_sample_continues_a_prompt_from_a_file(world: Path, gpt2_command) -> None:
    Path("prompt.txt").write_text("the cat")
    status, out, err = gpt2_command(
        "sample", "r", "--start=FILE:prompt.txt", "--max_new_tokens=20", "--num_samples=2"
    )
    assert status == 0, err
    texts = out.split("\n---------------\n")
    assert [t.startswith("the cat") for t in texts] == [True, True, False]
    assert len(texts[0]) == 27
    assert texts[0] != texts[1]
    again = gpt2_command("sample", "r", "--start=the cat", "--max_new_tokens=20", "--seed=1338")[1]
    assert again.startswith(texts[1])


def test_several_prompts_in_a_recipe_and_by_flags(world: Path, gpt2_command) -> None:
    Path("prompts.toml").write_text('dataset = "d"\nsample_interval = 1\nsample_start = ["the cat", "a"]\n')
    for line in (
        "train prompts.toml TINY --out_dir=recipe",
        "train TINY --dataset=d --sample_interval=1 --sample_start=FILE:cat.txt --sample_start=a --out_dir=flags",
        "train TINY --init_from=resume --out_dir=flags --max_iters=2",
    ):
        Path("cat.txt").write_text("the cat")
        status, _, err = gpt2_command(*words_of(line))
        assert status == 0, err
    one, other = (Path(name, "samples", "step_0000001.txt").read_text() for name in ("recipe", "flags"))
    assert one == other
    assert 'sample_start = ["the cat", "a"]\n' in Path("recipe/config.toml").read_text()
    assert 'sample_start = ["FILE:cat.txt", "a"]\n' in Path("flags/config.toml").read_text()
    assert "changed for this resume: sample_start" not in err


def test_empty_prompts_and_greedy_sampling_work(world: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command("sample", "r", "--temperature=0", "--max_new_tokens=30")
    assert status == 0
    assert len(out) > 30


def test_plot_draws_several_runs(world: Path, gpt2_command) -> None:
    shutil.copytree("r", "r2")
    assert gpt2_command("plot", "r", "r2", "-o", "curves.png")[0] == 0
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_writes_a_page(world: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command("report", "r", "-o", "pages/r.html", "--json")
    assert status == 0
    assert Path("pages/r.html").read_text().startswith("<!doctype html>")
    figures = json.loads(out)
    assert (figures["state"], figures["step"], figures["verdict"]) == ("finished", 2, "unknown")
    assert figures["best_val_loss"] <= figures["val_loss"]
    assert sum(figures["seconds_by_part"].values()) == pytest.approx(figures["seconds"], abs=0.02)


def test_a_run_is_served_while_it_trains(world: Path, gpt2_command, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def look_in(log: object, step: int, text: str, seconds: float) -> None:
        if step == 3:
            address = capfd.readouterr().err.split("watch this run at ")[1].split()[0]
            with urllib.request.urlopen(address + "body", timeout=30) as answer:
                read.append(answer.read().decode())

    monkeypatch.setattr("gpt2.runlog.records.LogWriter.sample", look_in)
    line = "train TINY --dataset=d --out_dir=w --max_iters=3 --sample_interval=3 --eval_interval=1 --ui"
    status, _, err = gpt2_command(*words_of(line))
    assert status == 0, err
    assert "<dd>3<small>of 3</small></dd>" in read[0]


def test_a_run_trains_without_its_page_if_the_port_is_in_use(world: Path, gpt2_command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        status, _, err = gpt2_command(*words_of(f"train TINY --dataset=d --out_dir=w --ui --ui_port={port}"))
    assert status == 0
    assert f"training without its page: port {port} of 127.0.0.1 cannot be served: Address already in use" in err
    assert "finished at step 1" in err


def test_demo_runs_through(world: Path, gpt2_command, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = gpt2_command("demo", "--smoke")
    assert status == 0, err
    assert "validation loss" in out
    assert Path("out-demo/plot.png").is_file()
    assert gpt2_command("demo", "--smoke")[0] == 0  # a second demo replaces the first
