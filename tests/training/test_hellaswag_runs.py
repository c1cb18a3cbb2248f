"""HellaSwag while training: when it is measured, what is logged, that nothing else changes."""

import json
from pathlib import Path

import pytest
from runs import curve, final_weights

import gpt2
from gpt2.errors import UserError
from gpt2.evaluation.choices import choose
from gpt2.evaluation.hellaswag import read_tasks
from gpt2.runlog.records import read_log
from gpt2.training.loop import train


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    words = ["cat sat", "dogs run", "some hill", "a mat"]
    rows = [{"ctx": f"the {w} and", "endings": words, "label": i % 4} for i, w in enumerate(words * 3)]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "h.jsonl")


def measured(run: Path) -> list[dict]:
    return [r for r in read_log(run) if "acc" in r]


def test_it_is_measured_every_so_often_and_at_the_end(tiny, tasks: str, tmp_path: Path) -> None:
    train(tiny(max_iters=25, hellaswag_interval=10, hellaswag_data=tasks, hellaswag_limit=9, log_interval=50))
    records = measured(tmp_path / "run")
    assert [(r["event"], r["step"]) for r in records] == [("eval", s) for s in (0, 10, 20, 25)]
    assert all({"acc_norm", "seconds"} <= r.keys() for r in records)
    model, tokenizer = gpt2.load(str(tmp_path / "run" / "checkpoints" / "step_0000025"))
    result = choose(model, read_tasks(Path(tasks), tokenizer, limit=9), dtype="float32")
    assert (records[-1]["acc"], records[-1]["acc_norm"]) == (result.acc, result.acc_norm)


def test_the_training_does_not_notice(tiny, tasks: str, tmp_path: Path) -> None:
    settings = {"dropout": 0.2, "sample_interval": 10}
    train(tiny(**settings, out_dir=str(tmp_path / "without")))
    train(tiny(**settings, out_dir=str(tmp_path / "with"), hellaswag_interval=5, hellaswag_data=tasks))
    without, with_ = tmp_path / "without", tmp_path / "with"
    assert final_weights(without) == final_weights(with_)
    acc_only = [("eval", r["step"], None, None, None, None, None, None, None) for r in measured(with_)]
    assert len(acc_only) == 5
    assert [c for c in curve(with_) if c not in acc_only] == curve(without)


def test_a_resumed_run_has_each_measurement_once(tiny, tasks: str, tmp_path: Path) -> None:
    settings = {"hellaswag_interval": 10, "hellaswag_data": tasks, "lr_decay_iters": 20}
    train(tiny(**settings, max_iters=10))
    train(tiny(**settings, max_iters=20, init_from="resume"))
    evaluations = [(r["step"], "acc" in r) for r in read_log(tmp_path / "run") if r["event"] == "eval"]
    assert sorted(evaluations) == [(step, what) for step in (0, 10, 20) for what in (False, True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hellaswag_data": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"block_size": 8}, "task 0 has an ending of 10 tokens, more than the model's 8"),
        ({"hellaswag_limit": -1}, "hellaswag_limit is -1"),
    ],
)
def test_what_cannot_be_measured_is_said_before_training(
    changes: dict, message: str, tiny, tasks: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny(**{"hellaswag_interval": 5, "hellaswag_data": tasks, **changes}))
    assert not (tmp_path / "run").exists()
