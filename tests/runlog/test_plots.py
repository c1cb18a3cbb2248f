from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.runlog.plots import plot_runs, smooth
from gpt2.training.loop import train


def test_smoothing_starts_without_a_bias_and_keeps_a_constant() -> None:
    assert smooth([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])
    assert smooth([], 0.9) == []


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


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0}\n')
    with pytest.raises(UserError, match="nothing to draw"):
        plot_runs([tmp_path], tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.bmp"):
        plot_runs([tmp_path], tmp_path / "a.bmp")
