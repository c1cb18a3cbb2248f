import json
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.reporting.picture import plot_runs
from gpt2.training.loop import train


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")])
def test_pictures_of_a_run(tiny, tmp_path: Path, name: str, start: bytes) -> None:
    train(tiny(max_iters=5))
    plot_runs([tmp_path / "run"], tmp_path / "pictures" / name)
    assert (tmp_path / "pictures" / name).read_bytes().startswith(start)


def test_curves_are_named_after_their_runs(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=5))
    (tmp_path / "run").rename(tmp_path / "first-run")
    train(tiny(max_iters=5, out_dir=str(tmp_path / "second-run")))
    plot_runs([tmp_path / "first-run", tmp_path / "second-run" / "log.jsonl"], tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert "<!-- first-run -->" in svg
    assert "<!-- second-run -->" in svg


@pytest.mark.parametrize(
    ("axis", "label"),
    [("steps", "step"), ("tokens", "tokens"), ("flops", "training FLOPs"), ("time", "seconds of training")],
)
def test_runs_are_drawn_over_any_axis(tiny, tmp_path: Path, axis: str, label: str) -> None:
    train(tiny(max_iters=3))
    log = tmp_path / "run" / "log.jsonl"
    hellaswag = {"event": "eval", "step": 3, "time": 0, "acc": 0.25, "acc_norm": 0.3}
    log.write_text(log.read_text() + json.dumps(hellaswag) + "\n")
    plot_runs([tmp_path / "run"], tmp_path / "a.svg", axis)
    svg = (tmp_path / "a.svg").read_text()
    assert svg.count(f"<!-- {label} -->") == 5
    assert "<!-- run acc_norm (last 0.3000) -->" in svg


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0}\n')
    with pytest.raises(UserError, match="nothing to draw"):
        plot_runs([tmp_path], tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.bmp"):
        plot_runs([tmp_path], tmp_path / "a.bmp")
    with pytest.raises(UserError, match="smooth is 1"):
        plot_runs([tmp_path], tmp_path / "a.png", smoothing=1)
