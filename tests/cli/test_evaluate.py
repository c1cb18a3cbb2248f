"""`gpt2 eval hellaswag` as a user types it."""

import json
from pathlib import Path

import pytest

from gpt2.formats.export import export
from gpt2.formats.open import open_model
from gpt2.training.loop import train

TASKS = [
    {"ctx": "the cat sat", "endings": ["on a mat", "and saw", "two dogs", "the hill"], "label": 0},
    {"ctx": "two dogs run over some", "endings": ["hill", "cat", "the mat", "dogs saw"], "label": "3"},
    {"ctx": "a", "endings": ["cat", "hill", "mat", "dog"], "label": 1},
]


@pytest.fixture
def run(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train(tiny(out_dir="r", max_iters=2, block_size=16))
    Path("h.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    return tmp_path


def test_figures_and_choices(run: Path, gpt2_command) -> None:
    line = ["eval", "hellaswag", "r", "--data=h.jsonl", "--device=cpu"]
    status, out, err = gpt2_command(*line, "--json", "--out=choices.jsonl")
    assert status == 0, err
    figures = json.loads(out)
    chosen = [json.loads(row) for row in Path("choices.jsonl").read_text().splitlines()]
    assert [row["label"] for row in chosen] == [0, 3, 1]
    for row, task in zip(chosen, TASKS, strict=True):
        by_length = [v / (1 + len(e)) for v, e in zip(row["log_likelihoods"], task["endings"], strict=True)]
        assert row["prediction"] == row["log_likelihoods"].index(max(row["log_likelihoods"]))
        assert row["prediction_norm"] == by_length.index(max(by_length))
    for figure, name in (("acc", "prediction"), ("acc_norm", "prediction_norm")):
        assert figures[figure] == sum(row[name] == row["label"] for row in chosen) / 3
    assert (figures["tasks"], figures["rendering"]) == (3, "build-nanogpt")
    status, out, _ = gpt2_command(*line, "--limit=1")
    assert status == 0
    assert out.startswith(f"HellaSwag acc {float(chosen[0]['prediction'] == 0):.4f} · acc_norm ")
    assert "· 1 task ·" in out


def test_a_model_without_a_tokenizer_can_be_given_one(run: Path, gpt2_command) -> None:
    export(open_model("r"), "nanogpt", Path("nano"), print)
    Path("nano/meta.pkl").unlink()
    figures = []
    for options in (["r"], ["nano", "--tokenizer=r"]):
        status, out, err = gpt2_command("eval", "hellaswag", *options, "--data=h.jsonl", "--json", "--device=cpu")
        assert status == 0, err
        figures.append({name: json.loads(out)[name] for name in ("acc", "acc_norm", "tasks")})
    assert figures[0] == figures[1]


def test_llmcs_file_is_written_and_evaluated(run: Path, gpt2_vocabulary: None, gpt2_command) -> None:
    Path("text.txt").write_text("the cat sat on a mat and saw two dogs run over some hill\n" * 50)
    assert gpt2_command("prepare", "text.txt", "--tokenizer=gpt2", "--out=d")[0] == 0
    size = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=16", "--no-compile", "--device=cpu"]
    assert gpt2_command("train", "--dataset=d", "--out_dir=w", "--max_iters=1", *size)[0] == 0
    status, out, err = gpt2_command("eval", "hellaswag", "--data=h.jsonl", "--write_bin=t.bin")
    assert (status, out) == (0, ""), err
    assert "wrote 3 tasks to t.bin" in err
    figures = []
    for data in ("h.jsonl", "t.bin"):
        status, out, err = gpt2_command("eval", "hellaswag", "w", f"--data={data}", "--json", "--device=cpu")
        assert status == 0, err
        figures.append({name: json.loads(out)[name] for name in ("acc", "acc_norm", "tasks")})
    assert figures[0] == figures[1]
