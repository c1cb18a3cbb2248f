"""Texts written while a model is trained."""

from pathlib import Path

import pytest

import gpt2
from gpt2.runlog.records import read_log
from gpt2.training.loop import train

LINE = "\n---------------\n"


def test_every_prompt_is_continued_with_seeds_of_its_own(tiny, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("two dogs\n")
    prompts = ("the", f"FILE:{tmp_path / 'prompt.txt'}")
    train(tiny(sample_interval=10, sample_start=prompts, num_samples=2, sample_tokens=15, seed=5))
    run = tmp_path / "run"
    model, tokenizer = gpt2.load(str(run / "checkpoints" / "step_0000020"))
    expected = [
        prompt + gpt2.generate(model, tokenizer, prompt, max_new_tokens=15, seed=seed)
        for prompt in ("the", "two dogs\n")
        for seed in (5, 6)
    ]
    assert len(set(expected)) == 4
    assert (run / "samples" / "step_0000020.txt").read_text() == LINE.join(expected) + "\n"
    records = [r for r in read_log(run) if r["event"] == "sample"]
    assert [r["step"] for r in records] == [0, 10, 20]
    assert records[-1]["text"] == LINE.join(expected)
    assert all(r["seconds"] > 0 for r in records)


def test_the_prompt_is_read_once(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes or goes while the run is on does not matter."""
    from gpt2.training import loop

    file, step = tmp_path / "prompt.txt", loop.train_step
    file.write_text("the cat")
    monkeypatch.setattr(loop, "train_step", lambda run: file.unlink(missing_ok=True) or step(run))
    train(tiny(max_iters=2, sample_interval=1, sample_start=f"FILE:{file}", sample_tokens=3))
    assert (tmp_path / "run" / "samples" / "step_0000002.txt").read_text().startswith("the cat")


def test_the_greatest_seed_has_a_next_one(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=0, sample_interval=1, sample_start="a", num_samples=2, sample_tokens=3, seed=2**63 - 1))
    assert (tmp_path / "run" / "samples" / "step_0000000.txt").read_text().count(LINE) == 1


def test_the_default_prompt_of_a_vocabulary_without_newline_is_empty(tiny, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_text("to be or not to be " * 100)
    data = gpt2.prepare(tmp_path / "line.txt", out=tmp_path / "line", tokenizer="char")
    train(tiny(dataset=str(data), max_iters=2, sample_interval=2, sample_tokens=15))
    model, tokenizer = gpt2.load(str(tmp_path / "run"))
    expected = gpt2.generate(model, tokenizer, "", max_new_tokens=15)
    assert (tmp_path / "run" / "samples" / "step_0000002.txt").read_text() == expected + "\n"
    with pytest.raises(gpt2.UserError, match=r"the prompt 'a\\n' cannot be encoded"):
        train(tiny(dataset=str(data), out_dir=str(tmp_path / "other"), sample_interval=1, sample_start="a\n"))
