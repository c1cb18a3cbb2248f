"""Logs of llm.c and build-nanogpt, both ways."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import gpt2
from gpt2.errors import UserError
from gpt2.runlog.curves import load
from gpt2.runlog.other_logs import BUILD_NANOGPT, LLMC, OtherLogWriter, read_any
from gpt2.runlog.records import read_log
from gpt2.training.loop import train

CUDA = """\
s:0 tel:11.0214
s:0 eval:0.2457
s:0 trl:11.0209 lr:0.000001 norm:15.34
s:1 trl:10.9675 lr:0.000002 norm:15.11
s:2 tel:10.8123
"""
PYTHON = "s:0 tel:5.325413\ns:0 trl:4.677798\ns:1 trl:5.191773\n"
BUILD = "0 val 10.9871\n0 hella 0.2479\n0 train 10.987436\n1 train 10.651201\n2 val 10.1234\n2 hella 0.2501\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_llmcs_log(tmp_path: Path) -> None:
    assert read_any(write(tmp_path / "main.log", CUDA)) == [
        {"event": "eval", "step": 0, "val_loss": 11.0214, "acc_norm": 0.2457},
        {"event": "train", "step": 1, "loss": 11.0209, "lr": 1e-6, "grad_norm": 15.34},
        {"event": "train", "step": 2, "loss": 10.9675, "lr": 2e-6, "grad_norm": 15.11},
        {"event": "eval", "step": 2, "val_loss": 10.8123},
    ]


def test_the_log_of_llmcs_python_script(tmp_path: Path) -> None:
    assert read_any(write(tmp_path / "main.log", PYTHON)) == [
        {"event": "eval", "step": 0, "val_loss": 5.325413},
        {"event": "train", "step": 1, "loss": 4.677798},
        {"event": "train", "step": 2, "loss": 5.191773},
    ]


def test_build_nanogpts_log(tmp_path: Path) -> None:
    assert read_any(write(tmp_path / "log.txt", BUILD)) == [
        {"event": "eval", "step": 0, "val_loss": 10.9871, "acc_norm": 0.2479},
        {"event": "train", "step": 1, "loss": 10.987436},
        {"event": "train", "step": 2, "loss": 10.651201},
        {"event": "eval", "step": 2, "val_loss": 10.1234, "acc_norm": 0.2501},
    ]


def test_a_restarted_log_has_the_later_steps_once(tmp_path: Path) -> None:
    again = "s:1 trl:9.0 lr:0.5 norm:1\ns:2 tel:8.0\ns:2 trl:7.0 lr:0.5 norm:1\ns:2 tel:8.5\n"
    values = [(r["step"], r.get("loss", r.get("val_loss"))) for r in read_any(write(tmp_path / "a", CUDA + again))]
    assert values == [(0, 11.0214), (1, 11.0209), (2, 9.0), (2, 8.5)]
    anew = [(r["step"], r.get("loss")) for r in read_any(write(tmp_path / "a", CUDA + "s:0 trl:1.0\n"))]
    assert anew == [(0, None), (1, 1.0)]


def test_other_fields_numbers_that_are_none_and_torn_lines(tmp_path: Path) -> None:
    text = "s:0 trl:nan lr:0.1 norm:-inf mfu:0.5\ns:1 mmlu:0.25\n\ns:1 trl:2.5\ns:2 trl:1."
    assert read_any(write(tmp_path / "x", text)) == [
        {"event": "train", "step": 1, "loss": None, "lr": 0.1, "grad_norm": None},
        {"event": "train", "step": 2, "loss": 2.5},
    ]


def test_folders_and_our_own_log_are_read_too(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=2, llmc_log=True))
    run = tmp_path / "run"
    assert read_any(run) == read_any(run / "log.jsonl") == read_log(run)
    assert len(read_any(run / "llmc")) == len(read_any(run / "llmc" / "main.log")) == 4
    assert read_any((run / "log.jsonl").rename(tmp_path / "renamed"))[0]["event"] == "start"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step 1: loss 3\n", "a.log is not a log of a run"),
        ("", "a.log is not a log of a run"),
        ("\x00\xff" * 100, "a.log is not a log of a run"),
        ('{"event": "start"}\n', "a.log is not a log of a run"),
        (f"s:{'9' * 5000} trl:1\n", "a.log is not a log of a run"),
    ],
)
def test_what_is_no_log_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        read_any(write(tmp_path / "a.log", text))
    with pytest.raises(UserError, match=r"holds no log\.jsonl, nor a main\.log"):
        read_any(tmp_path)


@pytest.mark.parametrize("text", [CUDA + "s:3 trl:x\n", CUDA + "3 train 1.0\n", BUILD + "3 test 1.0\n"])
def test_a_line_of_another_kind_is_skipped_and_counted(tmp_path: Path, text: str) -> None:
    *lines, _, _ = text.split("\n")
    intact = read_any(write(tmp_path / "intact.log", "".join(line + "\n" for line in lines)))
    damaged = load(write(tmp_path / "a.log", text))
    assert len(damaged.records) == len(intact) > 0
    assert damaged.unreadable == 1


SWITCHES = {"llmc_log": True, "build_nanogpt_log": True}
FILES = {"llmc/main.log": 4, "build-nanogpt/log.txt": 6}
"""What the switches write, with the digits of the training loss."""


@pytest.mark.parametrize("file", FILES)
def test_a_run_is_read_back_from_a_peers_log(tiny, tmp_path: Path, file: str) -> None:
    train(tiny(max_iters=12, eval_interval=5, **SWITCHES))
    ours = [r for r in read_log(tmp_path / "run") if r["event"] in ("train", "eval")]
    theirs = read_any(tmp_path / "run" / file)
    digits = {"loss": FILES[file], "val_loss": 4, "lr": 6, "grad_norm": 2}
    assert [(r["event"], r["step"]) for r in theirs] == [(r["event"], r["step"]) for r in ours]
    for mine, its in zip(ours, theirs, strict=True):
        names = its.keys() - {"event", "step"}
        assert names == {"eval": {"val_loss"}}.get(
            mine["event"], {"loss"} if "txt" in file else digits.keys() - {"val_loss"}
        )
        assert {name: its[name] for name in names} == {name: round(mine[name], digits[name]) for name in names}


def test_the_lines_are_the_peers(tmp_path: Path) -> None:
    """Their own ways to make them: C's printf, as Python's % does it, and build-nanogpt's f-strings."""
    step, loss, lr, norm, val_loss, hella = 18864, 3.29445678, 5.94049e-4, 0.23456, 3.28512, 0.30252
    for peer in (LLMC, BUILD_NANOGPT):
        writer = OtherLogWriter(tmp_path, peer)
        writer.log("eval", step, {"train_loss": 1.0, "val_loss": val_loss})
        writer.log("eval", step, {"acc": 0.25, "acc_norm": hella})
        writer.log("train", step + 1, {"loss": loss, "lr": lr, "grad_norm": norm, "mfu": 0.5})
        writer.log("sample", step + 1, {"text": "a"})
    assert (tmp_path / "main.log").read_text() == (
        "s:%d tel:%.4f\n" % (step, val_loss)  # noqa: UP031
        + "s:%d eval:%.4f\n" % (step, hella)  # noqa: UP031
        + "s:%d trl:%.4f lr:%.6f norm:%.2f\n" % (step, loss, lr, norm)  # noqa: UP031
    )
    assert (tmp_path / "log.txt").read_text() == (
        f"{step} val {val_loss:.4f}\n{step} hella {hella:.4f}\n{step} train {loss:.6f}\n"
    )


def test_a_run_that_goes_on_writes_no_step_twice(tiny, tmp_path: Path) -> None:
    settings = {"max_iters": 12, "eval_interval": 4, **SWITCHES}
    train(tiny(**settings, out_dir=str(tmp_path / "whole")))
    run, config = tmp_path / "run", tiny(**settings)
    train(replace(config, max_iters=8, lr_decay_iters=12, warmup_iters=0))
    for file in FILES:  # as a run leaves it that was killed after its last checkpoint
        with (run / file).open("a") as log:
            log.write((tmp_path / "whole" / file).read_text().splitlines()[-2] + "\ns:11 tr")
    train(gpt2.resume_config(run, max_iters=12))
    for file in FILES:
        assert (run / file).read_text() == (tmp_path / "whole" / file).read_text()
    train(replace(config, overwrite=True))
    for file in FILES:
        assert (run / file).read_text() == (tmp_path / "whole" / file).read_text()


def test_a_log_that_cannot_be_written_costs_one_line(tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "llmc").write_text("in the way")
    assert train(tiny(max_iters=2, llmc_log=True)).step == 2
    told = [line for line in capfd.readouterr().err.splitlines() if "goes on without" in line]
    assert len(told) == 1
    assert told[0].startswith("llmc_log failed (")
