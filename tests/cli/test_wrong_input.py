"""What people get wrong: each gives one clear line and status 2, and nothing is lost."""

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

from gpt2.checkpoint import folder_of, saved_steps
from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.training.loop import train


@pytest.fixture
def world(tmp_path: Path, dataset: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset `d`, a finished run `r` and some damaged copies of both."""
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


TINY = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "max_iters": 1, "device": "cpu", "compile": False}


def words_of(line: str) -> list[str]:
    """The words of a command line, in which TINY stands for a tiny model, as far as the line says no other."""
    tiny = [f"--{name}={value}" for name, value in TINY.items() if f"--{name}=" not in line]
    return [word for w in line.split() for word in (tiny if w == "TINY" else [w])]


WRONG = [
    # (command line, what the line must say)
    ("trian", 'Did you mean "train"'),
    ("train --batch_sise=3", "Did you mean --batch-size"),
    ("train --batch_size=many", "many"),
    ("train --compile=maybe", "maybe"),
    ("train --dtype=float8", "float8"),
    ("train --learning_rate", "requires an argument"),
    ("train no_such_recipe", "built-in recipes"),
    ("train shakespeare_chr", "did you mean shakespeare_char"),
    ("train bad.toml", "did you mean batch_size"),
    ("train float.toml", "float.toml: batch_size is 3.5 (float); it must be int"),
    ("train --batch_size=3.5", "--batch_size is 3.5"),
    ("train nanogpt.py", "nanogpt.py, line 1"),
    ("train", "no dataset given"),
    ("train TINY --dataset=nowhere", "no dataset 'nowhere'"),
    ("train TINY --dataset=empty", "holds no dataset"),
    ("train TINY --dataset=truncated", "odd number of bytes"),
    ("train TINY --dataset=foreign", "token id 999"),
    ("train TINY --dataset=d --block_size=100000", "too few for one block"),
    ("train TINY --dataset=d --total_batch_size=100", "nearest"),
    ("train TINY --dataset=d --total_batch_size=192 --gradient_accumulation_steps=3", "give only one"),
    ("train TINY --dataset=d --vocab_size=3", "vocab_size=3 is too small"),
    ("train TINY --dataset=d --n_head=3", "n_head=3"),
    ("train TINY --dataset=d --device=cuda:99", "not available"),
    ("train TINY --dataset=d --device=abacus", "abacus"),
    ("train TINY --dataset=d --out_dir=a_file/run", "a_file/run"),
    ("train TINY --dataset=d --out_dir=r", "already holds a run"),
    ("train TINY --dataset=d --init_from=resume --out_dir=empty", "no checkpoint to resume"),
    ("train --init_from=resume --out_dir=corrupt", "is damaged"),
    ("train --init_from=resume --out_dir=r --n_layer=5", "n_layer=2, not 5"),
    ("train TINY --dataset=d --init_from=a_file", "is no model"),
    ("train TINY --dataset=d --max_iters=-1", "at least 0"),
    ("train TINY --dataset=d --min_lr=nan", "min_lr"),
    ("train TINY --dataset=d --max_tokens=95", "95 tokens, less than the 96 of one update"),
    ("train TINY --dataset=d --max_tokens=1.5", "whole number"),
    ("train TINY --dataset=d --max_epochs=0.0001", "max_epochs=0.0001 is"),
    ("train TINY --dataset=d --early_stopping_patience=2 --eval_interval=0", "eval_interval=0 makes none"),
    ("train TINY --dataset=d --sample_interval=1 --sample_start=FILE:nowhere.txt", "nowhere.txt"),
    ("train TINY --dataset=d --sample_interval=1 --sample_start=the --sample_start=Ω", "'Ω'"),
    ("train TINY --dataset=d --num_samples=0", "num_samples is 0"),
    ("train prompts.toml TINY --dataset=d", "prompts.toml: sample_start is ('a', 3); it must be a text or a list"),
    ("sample", "MODEL"),
    ("sample nowhere", "no model 'nowhere'"),
    ("sample empty", "is no model"),
    ("sample corrupt", "no intact checkpoint"),
    ("sample r --start=Ω", "'Ω'"),
    ("sample r --start=FILE:nowhere.txt", "nowhere.txt"),
    ("sample r --temperature=-1", "temperature"),
    ("sample r --top_p=2", "top_p"),
    ("sample r --temperature=nan", "temperature"),
    ("sample r --seed=99999999999999999999999", "seed"),
    ("train TINY --dataset=d --grad_clip=inf", "finite"),
    ("train TINY --dataset=d --seed=99999999999999999999999", "seed"),
    ("prepare r/log.jsonl --tokenizer=byte --out=r", "holds no dataset"),
    ("prepare mine.txt --tokenizer=bpe --vocab_size=0", "at least 257"),
    ("tokenizer train", "SOURCES"),
    ("tokenizer train nowhere.txt", "nowhere.txt"),
    ("tokenizer train shakespear", "corpora by name: shakespeare_char"),
    ("tokenizer train latin.txt", "not UTF-8"),
    ("tokenizer train mine.txt", "500 characters, enough for only"),
    ("tokenizer train a_file --vocab_size=257", "1 characters, too few"),
    ("tokenizer train mine.txt --vocab_size=256", "at least 257"),
    ("tokenizer train mine.txt --vocab_size=258 --special_tokens <|a|> <|b|>", "at least 259"),
    ("tokenizer train mine.txt --special_tokens <|a|> <|a|>", "given twice"),
    ("tokenizer train mine.txt --vocab_size=3.5", "--vocab_size is 3.5"),
    ("tokenizer train mine.txt --max_characters=0", "max_characters is 0"),
    ("tokenizer train mine.txt --vocab_size=260 --out=nowhere/t.json", "no folder nowhere"),
    ("tokenizer train mine.txt --vocab_size=260 --out=nowhere", "NAME.json"),
    ("tokenizer train mine.txt --vocab_size=260 --out=d/vocab.json", "NAME.json"),
    ("tokenizer train mine.txt --vocab_size=260 --out=d/dataset.json", "NAME.json"),
    ("tokenizer train mine.txt --vocab_size=260 --out=there.json", "there.json already exists"),
    ("demo --smoke --out_dir=r", "already holds a run"),
    ("sample r --num_samples=0", "num_samples"),
    ("prepare", "SOURCES"),
    ("prepare nowhere.txt", "nowhere.txt"),
    ("prepare shakespear", "corpora by name: shakespeare_char"),
    ("prepare empty", "no text files"),
    ("prepare latin.txt --tokenizer=char", "not UTF-8"),
    ("prepare a_file --tokenizer=word", "word"),
    ("prepare a_file --tokenizer=char", "too few"),
    ("prepare r/log.jsonl --tokenizer=byte --out=d", "--overwrite"),
    ("prepare shakespeare --from=a_file", "not the tiny Shakespeare"),
    ("eval loss r", "DATASET"),
    ("eval loss r empty", "holds no dataset"),
    ("eval hellaswag r --data=nowhere.jsonl", "no file nowhere.jsonl"),
    ("eval hellaswag r --data=broken.jsonl", "broken.jsonl, line 2 is no JSON"),
    ("eval hellaswag r --data=long.jsonl", "task 0 has an ending of 18 tokens, more than the model's 16"),
    ("eval hellaswag r --data=h.jsonl --limit=0", "limit is 0"),
    ("eval hellaswag r --data=h.jsonl --limit=1.5", "--limit is 1.5"),
    ("eval hellaswag r --data=h.jsonl --rendering=lm-eval", "line 1 has no activity_label"),
    ("eval hellaswag r --data=h.jsonl --rendering=nice", "nice"),
    ("eval hellaswag r --data=h.jsonl --batch_tokens=0", "batch_tokens is 0"),
    ("eval hellaswag r --data=h.jsonl --out=a_file", "a_file already exists"),
    ("eval hellaswag r --data=h.jsonl --write_bin=t.bin", "llm.c's file holds GPT-2's tokens"),
    ("eval hellaswag nano --data=h.jsonl", "brings no tokenizer; name one with --tokenizer"),
    ("eval hellaswag empty --data=h.jsonl", "is no model"),
    ("plot empty", "log.jsonl"),
    ("plot r --x=weeks", "weeks"),
    ("plot r --smooth=1", "smooth is 1"),
    ("report", "RUN"),
    ("report empty", "log.jsonl"),
    ("report r --serve --port=70000", "0 to 65535"),
    ("export", "FORMAT"),
    ("export onnx r out", "onnx"),
    ("export hf nowhere out", "no model 'nowhere'"),
    ("export hf r d", "d already exists"),
    ("export gguf r a_file", "a_file already exists"),
    ("export hf r out --dtype=q8_0", "hf has no q8_0"),
    ("export llmc r out --dtype=float16", "llmc has no float16"),
    ("export gguf r out --dtype=q8_0", "n_embd=16 is no multiple of 32"),
    ("export gguf nano out", "brings no tokenizer"),
    ("export llmc r out --dataset=d --block_size=999", "does not fit the model's 16 positions"),
    ("export hf r out --dataset=d", "hf has no debug state"),
    ("export hf r out --tokenizer=nowhere", "no tokenizer in nowhere"),
    ("export hf r out --tokenizer=byte", "257 ids, more than"),
    ("export hf a_file out", "is no model"),
    ("import r", "OUT"),
    ("import r d", "d already exists"),
    ("import nano out", "brings no tokenizer"),
    ("sample nano", "brings no tokenizer"),
    ("sample d/train.bin", "is no model"),
    ("validate nowhere", "no model 'nowhere'"),
    ("train TINY --dataset=d --resume_optimizer", "has no optimizer state"),
    ("plot r -o curve.doc", ".png"),
]


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


def test_flags_have_one_meaning_in_every_spelling(world: Path, gpt2_command) -> None:
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


def test_flag_beats_recipe_beats_default(world: Path, gpt2_command) -> None:
    Path("mine.toml").write_text('dataset = "d"\nbatch_size = 5\nlearning_rate = 1\nout_dir = "p"\n')
    status, _, err = gpt2_command(*words_of("train mine.toml TINY --batch_size=3"))
    assert status == 0, err
    config = Path("p/config.toml").read_text()
    assert "batch_size = 3\n" in config
    assert "learning_rate = 1.0\n" in config
    assert "beta1 = 0.9\n" in config


def test_resume_needs_only_the_run(world: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("train", "--init_from=resume", "--out_dir=r", "--max_iters=4")
    assert status == 0, err
    assert saved_steps(Path("r"))[0] == 4


def test_a_resumed_run_keeps_its_settings_but_for_flags(world: Path, gpt2_command) -> None:
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


def test_a_copied_run_is_resumed_where_it_lies(world: Path, gpt2_command) -> None:
    shutil.copytree("r", "out")
    before = contents(world / "r")
    status, _, err = gpt2_command("train", "--init_from=resume", "--max_iters=4")
    assert status == 0, err
    assert saved_steps(Path("out"))[0] == 4
    assert contents(world / "r") == before


def test_a_recipe_may_say_how_it_starts(world: Path, gpt2_command) -> None:
    Path("auto.toml").write_text('dataset = "d"\nout_dir = "a"\ninit_from = "auto"\n')
    for steps in (1, 2):
        status, _, err = gpt2_command(*words_of(f"train auto.toml TINY --max_iters={steps} --lr_decay_iters=2"))
        assert status == 0, err
        assert saved_steps(Path("a"))[0] == steps


def test_a_resumed_run_keeps_the_size_of_its_update(world: Path, gpt2_command) -> None:
    Path("big.toml").write_text('dataset = "d"\nout_dir = "r"\ntotal_batch_size = 128\n')
    status, _, err = gpt2_command("train", "big.toml", "--init_from=resume", "--max_iters=3")
    assert status == 0, err
    assert "tokens per step 64" in err
    assert "keeps total_batch_size=unset" in err


def test_a_flag_for_one_batch_knob_replaces_the_recipes_other_one(world: Path, gpt2_command) -> None:
    Path("mine.toml").write_text('dataset = "d"\ntotal_batch_size = 192\nout_dir = "m"\n')
    status, _, err = gpt2_command(*words_of("train mine.toml TINY --gradient_accumulation_steps=3"))
    assert status == 0, err
    assert "tokens per step 288" in err


def test_a_reader_that_leaves_ends_the_command_quietly(world: Path) -> None:
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
    assert figures["tokens"] == 2020  # of the 2,021 for validation all but the first, which nothing comes before


def test_train_prints_one_json_object(world: Path, gpt2_command) -> None:
    status, out, _ = gpt2_command(*words_of("train TINY --dataset=d --eval_only --eval_iters=0 --json"))
    assert status == 0
    assert json.loads(out)["val_loss"] == pytest.approx(3.1, abs=0.2)  # ln 22, and a little


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


def test_a_run_is_watched_while_it_trains(world: Path, gpt2_command, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_busy_port_costs_the_page_and_not_the_run(world: Path, gpt2_command) -> None:
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
