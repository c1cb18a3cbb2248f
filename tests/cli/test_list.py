"""`gpt2 list`: what there is, and where each run stands."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from runs import start_process, wait_for_step

from gpt2.formats.run_folder import folder_of
from gpt2.reporting import listing
from gpt2.reporting.listing import describe, newest_records, runs_in
from gpt2.runlog.records import LogWriter, read_log
from gpt2.training.loop import train
from gpt2.training.recipes import load_recipe, names


def listed(gpt2_command, *arguments: object) -> dict[str, list[dict]]:
    status, out, err = gpt2_command("list", *arguments, "--json")
    assert status == 0, err
    return json.loads(out)


def test_all_kinds_are_listed_with_what_identifies_them(
    tiny, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2_command
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dataset, "data/mine")
    run = train(tiny(out_dir="runs/one")).out_dir
    found = listed(gpt2_command)
    assert [r["name"] for r in found["recipes"]] == names()
    for recipe in found["recipes"]:
        assert recipe["about"].endswith(".")
        assert recipe["dataset"] == load_recipe(recipe["name"]).get("dataset", "")
    (data,) = found["datasets"]
    described = json.loads((dataset / "dataset.json").read_text())
    assert (data["name"], data["train"], data["val"]) == ("mine", *described["tokens"].values())
    assert (data["tokenizer"], data["vocab_size"]) == ("char", described["vocab_size"])
    assert data["bytes"] == sum(file.stat().st_size for file in dataset.iterdir())
    (entry,) = found["runs"]
    log = read_log(run)
    measured = [r["val_loss"] for r in log if r["event"] == "eval"]
    assert (entry["path"], entry["state"], entry["step"], entry["max_iters"]) == ("runs/one", "finished", 20, 20)
    assert entry["train_loss"] == [r["loss"] for r in log if r["event"] == "train"][-1]
    assert entry["best_val_loss"] == min(measured)
    assert entry["problem"] is None
    status, out, _ = gpt2_command("list")
    assert status == 0
    assert all(text in out for text in ("shakespeare_char_cpu", "mine", "runs/one", "finished", "20/20"))


def test_damaged_ones_are_listed_with_what_is_wrong(tiny, dataset: Path, tmp_path: Path, gpt2_command) -> None:
    shutil.copytree(dataset, tmp_path / "torn")
    (tmp_path / "torn" / "val.bin").write_bytes(b"12")
    shutil.copytree(dataset, tmp_path / "unreadable")
    (tmp_path / "unreadable" / "dataset.json").write_text("{")
    (tmp_path / "begun" / ".new").mkdir(parents=True)
    run = train(tiny()).out_dir
    (run / "config.toml").write_text("a = ")
    (folder_of(run, 20) / "model.safetensors").write_bytes(b"1")
    (tmp_path / "nothing").mkdir()
    found = listed(gpt2_command, "all", tmp_path)
    problems = {d["name"]: d["problem"] for d in found["datasets"]}
    assert problems.keys() == {"torn", "unreadable", "begun"}
    assert "1 token where dataset.json records" in problems["torn"]
    assert "cannot be read" in problems["unreadable"]
    assert "interrupted" in problems["begun"]
    (entry,) = found["runs"]
    assert "config.toml cannot be read" in entry["problem"]
    assert "checkpoint step_0000020 is damaged: model.safetensors has 1 bytes" in entry["problem"]
    status, out, _ = gpt2_command("list", "runs", tmp_path)
    assert status == 0
    assert "model.safetensors has 1 bytes" in out


def test_an_imported_run_that_never_trained_has_no_problem(tiny, tmp_path: Path, gpt2_command) -> None:
    run = train(tiny()).out_dir
    assert gpt2_command("import", run, tmp_path / "imported")[0] == 0
    assert describe(tmp_path / "imported").problem is None
    (run / "log.jsonl").unlink()
    assert describe(run).problem == "log.jsonl is missing"


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({}, "broken off"),
        ({"stopped": False, "because": "max_iters"}, "finished"),
        ({"stopped": True, "because": "SIGTERM"}, "stopped"),
        ({"stopped": True, "because": "error", "error": "no space"}, "failed"),
    ],
)
def test_the_state_follows_from_the_end_of_the_log(
    end: dict, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing.trainer, "FRESH_SECONDS", -1.0)
    with LogWriter(tmp_path) as log:
        log.write("start", 0)
        log.write("train", 1, loss=2.5)
        if end:
            log.write("end", 1, **end)
    entry = describe(tmp_path)
    assert (entry.state, entry.step, entry.train_loss) == (state, 1, 2.5)


def test_a_run_that_trains_is_running(tiny, gpt2_command) -> None:
    config = tiny(max_iters=10**6, eval_interval=10**6)
    process = start_process(config)
    try:
        wait_for_step(config, 1, process)
        (entry,) = listed(gpt2_command, "runs", config.out_dir)["runs"]
        assert entry["state"] == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    lines = [json.dumps({"event": "train", "step": i, "time": 1.0, "loss": 1.0}) for i in range(2000)]
    others = [json.dumps({"event": "sample", "step": 1999, "time": 2.0, "text": "x" * 100}) for _ in range(50)]
    log.write_text("\n".join([*lines, *others]) + '\n{"event": "train", "st')
    parsed: list[bytes] = []
    original = listing.parse
    monkeypatch.setattr(listing, "parse", lambda line: parsed.append(line) or original(line))
    monkeypatch.setattr(listing, "TAIL", 1000)
    newest, step = newest_records(log)
    assert (newest["event"], step["step"]) == ("sample", 1999)
    assert len(parsed) < 100


def test_other_programs_logs_and_folders_inside_runs_are_no_runs(tiny, tmp_path: Path) -> None:
    train(tiny())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.jsonl").write_text('{"level": "info"}\n')
    deep = tmp_path / "a" / "b" / "c" / "d"
    shutil.copytree(tmp_path / "run", deep)
    shutil.copytree(tmp_path / "run", tmp_path / ".hidden")
    assert [entry.path for entry in runs_in([tmp_path])] == [tmp_path / "run"]
    assert [entry.path for entry in runs_in([deep, tmp_path / "a"])] == [deep]


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path, gpt2_command) -> None:
    status, out, err = gpt2_command("list", "runs", tmp_path / "none")
    assert (status, out) == (2, "")
    assert "there is no folder" in err
