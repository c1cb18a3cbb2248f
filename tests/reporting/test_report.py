import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from logs import HOSTILE, long_run, write_log

from gpt2.errors import UserError
from gpt2.reporting.figures import RunReport, report_on
from gpt2.reporting.page import body, page
from gpt2.reporting.picture import plot_runs
from gpt2.training.config import TrainConfig
from gpt2.training.loop import train

DEFAULTS = TrainConfig().as_dict()


def report(*records: dict[str, Any], **settings: Any) -> RunReport:
    return RunReport("r", [{"event": "start", "step": 0, "time": 100.0, "tokens": 0}, *records], settings)


def test_headline_figures_are_those_of_the_log() -> None:
    update = {"event": "train", "loss": 3.0, "lr": 0.1, "grad_norm": 1.0}
    found = report(
        update | {"step": 1, "time": 110.0, "tokens": 10, "tokens_per_second": 1.0, "mfu": 0.1},
        {"event": "eval", "step": 1, "time": 112.0, "val_loss": 2.5, "seconds": 2.0},
        {"event": "resume", "step": 1, "time": 5000.0, "tokens": 10},
        update | {"step": 2, "time": 5010.0, "tokens": 20, "tokens_per_second": 3.0, "mfu": 0.3},
        update | {"step": 3, "time": 5020.0, "tokens": 30, "tokens_per_second": 2.0, "mfu": 0.2},
        {"event": "eval", "step": 3, "time": 5021.0, "val_loss": 2.75, "seconds": 1.0},
        {"event": "eval", "step": 3, "time": 5022.0, "acc": 0.3, "acc_norm": 0.4},
        max_iters=8, batch_size=2, block_size=5,
    )  # fmt: skip
    assert found.headline() == [
        ("validation loss", "2.7500", "at step 3"),
        ("best", "2.5000", "at step 1"),
        ("steps", "3", "of 8"),
        ("tokens", "30", "10 per step"),
        ("time", "34s", "about 57s to go"),  # 12 + 22 seconds for three updates, five to go
        ("tokens per second", "2", "median"),
        ("MFU", "20.0%", "of peak, median"),
    ]
    assert found.state == "open"
    assert found.evaluations[-1] == {"step": 3, "val_loss": 2.75, "acc": 0.3, "acc_norm": 0.4}
    assert found.events == [(1, "resumed")]


@pytest.mark.parametrize(
    ("limits", "last_step", "remaining"),
    [  # 2 of the steps took 20 seconds, and saw 20 of 50 tokens
        ({"max_iters": 8}, 8, 60.0),
        ({"max_iters": 8, "max_tokens": 49}, 4, 20.0),
        ({"max_iters": 8, "max_epochs": 1.0}, 5, 30.0),
        ({"max_iters": 8, "max_minutes": 0.5}, 8, 10.0),
        ({"max_iters": 3, "max_tokens": 1000}, 3, 10.0),
    ],
)
def test_the_time_that_is_left_is_that_until_the_first_limit(limits: dict, last_step: int, remaining: float) -> None:
    start = {"event": "start", "step": 0, "time": 100.0, "tokens": 0, "train_tokens": 50}
    steps = [{"event": "train", "step": i, "time": 100.0 + 10 * i, "tokens": 10 * i} for i in (1, 2)]
    found = RunReport("r", [start, *steps], limits | {"batch_size": 2, "block_size": 5})
    assert (found.last_step, found.remaining) == (last_step, remaining)


def test_all_the_time_on_the_clock_is_accounted_for() -> None:
    found = report(
        {"event": "train", "step": 1, "time": 104.0, "seconds": {"data": 0.5, "forward": 1.0, "backward": 2.0}},
        {"event": "eval", "step": 1, "time": 107.0, "val_loss": 2.5, "seconds": 3.0},
        {"event": "checkpoint", "step": 1, "time": 108.0, "seconds": 0.75},
    )
    split = dict(found.phases)
    assert split == {
        "data": 0.5, "forward": 1.0, "backward": 2.0, "evaluation": 3.0, "checkpoints": 0.75, "other": 0.75
    }  # fmt: skip
    assert sum(split.values()) == found.seconds == 8


def test_incidents_are_told() -> None:
    found = report(
        {"event": "skip", "step": 4, "loss": None, "rows": [1]},
        {"event": "straggler", "step": 20, "rank": 3, "host": "node7", "seconds": 1.0, "times": 2.5},
        {"event": "resume", "step": 10, "tokens": 1, "because": "step 12 · the loss is 9"},
        {"event": "end", "step": 22, "stopped": True},
    )
    assert found.events == [
        (4, "step skipped: the loss or the gradient is not finite"),
        (20, "process 3 on node7 was slow: it took 2.5 times as long as the others"),
        (10, "step 12 · the loss is 9"),
        (22, "stopped by a signal, and saved"),
    ]
    assert found.state == "stopped"
    assert report({"event": "end", "step": 2, "stopped": False}).state == "finished"
    goes_on = report({"event": "end", "step": 2, "stopped": True}, {"event": "resume", "step": 2})
    assert goes_on.state == "open"


def test_facts_are_those_of_the_log_and_else_of_the_settings() -> None:
    """By hand: V·C + T·C + L·(12C² + 2C) + C = 28 + 32 + 2·(192 + 8) + 4 = 464 parameters without biases."""
    start = {"event": "resume", "step": 0, "time": 1.8e9, "tokens": 0, "device": "a GPU", "torch": "2.13.0"}
    step = {"event": "train", "step": 1, "tokens": 500, "memory": 3 << 29}
    shape = {"vocab_size": 7, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 4, "bias": False}
    logged = {"version": "1.2", "parameters": 124_439_808, "train_tokens": 1000, "processes": 8}
    assert RunReport("r", [start | logged, step], shape).facts() == [
        "124M parameters", "500 tokens, 0.5 epochs", "8 × a GPU", "peak memory 1.5 GiB",
        "started 2027-01-15 08:00 UTC", "gpt2 1.2", "PyTorch 2.13.0",
    ]  # fmt: skip
    older = RunReport("r", [start | {"data": {"train": "250 tokens"}}, step], shape).facts()
    assert older[:3] == ["464 parameters", "500 tokens, 2 epochs", "a GPU"]
    assert RunReport("r", [step | {"memory": None}], {}).facts() == ["500 tokens"]


class Checked(HTMLParser):
    """Fails on an element that is not closed where it must be, and on what would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href") or str(value).startswith("data:")
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> Checked:
    parser = Checked()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<(pre|script|style)>.*?</\1>", "", html, flags=re.DOTALL))
    return parser


def test_a_page_of_a_real_run(tiny, tmp_path: Path) -> None:
    train(tiny(max_iters=20, sample_interval=10, sample_tokens=5, sample_start="the"))
    found = report_on(tmp_path / "run")
    html = page([found], DEFAULTS)
    checked(html)
    assert found.state == "finished"
    assert f"{found.last['val_loss']:.4f}" in html  # type: ignore[index]
    chosen, usual = html.split("<h2>Configuration</h2>")[1].split("<details id=defaults>")
    assert "<dt>batch_size</dt><dd>4</dd>" in chosen
    assert "<dt>weight_decay</dt><dd>0.1</dd>" in usual
    assert html.count("<details id=sample-") == 3
    assert "No step skipped" in html
    assert "<dt>torch</dt>" in html


def test_what_a_run_wrote_is_never_markup(tmp_path: Path) -> None:
    run = write_log(tmp_path / "<b>run", long_run(100), f"out_dir = {HOSTILE[:-1].replace(chr(34), '')!r}\n")
    parser = checked(page([report_on(run)], DEFAULTS))
    assert parser.seen.count("script") == 1
    assert "img" not in parser.seen


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    begun = write_log(tmp_path / "run", [{"event": "start", "step": 0, "time": 1.8e9, "tokens": 0}])
    html = page([report_on(begun)], DEFAULTS)
    checked(html)
    assert html.count("Nothing recorded yet.") == 4
    assert "No evaluation yet." in html
    checked(body([RunReport("r", [], {})], DEFAULTS))


def test_several_runs_have_one_page(tmp_path: Path) -> None:
    runs = [
        write_log(tmp_path / f"<{n}>", long_run(100 * n, 50), f"learning_rate = 0.{n}\nseed = 1\n") for n in (1, 2)
    ]
    html = page([report_on(run) for run in runs], DEFAULTS)
    parser = checked(html)
    assert parser.seen.count("article") == 2
    assert html.count('<path class="val s1"') == 6  # loss and HellaSwag, over three axes
    differing = html.split("<h2>Settings that differ</h2>")[1].split("</table>")[0]
    assert "<td>0.1</td><td>0.2</td>" in differing
    assert "seed" not in differing
    steps = html.split("<h2>Validation loss</h2>")[1].split("</table>")[0]
    assert steps.count("<tr>") == 1 + 5  # 0 to 200
    assert steps.count("<td>–</td>") == 2  # the first run ends at 100
    assert "&lt;1&gt;" in steps


def test_an_axis_that_a_log_lacks_is_not_offered(tmp_path: Path) -> None:
    (tmp_path / "main.log").write_text("s:0 tel:9.125\ns:0 trl:8.5 lr:0.1 norm:1\n")
    html = page([report_on(tmp_path)], DEFAULTS)
    checked(html)
    assert "type=radio" not in html
    whole = page([report_on(write_log(tmp_path / "run", long_run(10)))], DEFAULTS)
    assert all(f"value={axis}" in whole for axis in ("steps", "tokens", "time"))


def test_a_long_run_has_a_small_page_that_keeps_its_spikes(tmp_path: Path) -> None:
    records = long_run(30_000)
    next(r for r in records if r["event"] == "train" and r["step"] == 12_345)["grad_norm"] = 777.5
    html = page([report_on(write_log(tmp_path / "run", records))], DEFAULTS)
    assert len(html.encode()) < 1.5e6
    assert "777.5" in html
    assert "100 of 601, spread evenly." in html
    assert html.count("<details id=sample-") == 12


def test_a_run_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no log"):
        report_on(tmp_path)


def test_absurd_values_stop_neither_report_nor_plot(tmp_path: Path) -> None:
    values = [1e308, -1e308, 1e59, -1e59, 1e-320, 0, 1e999, 1]
    names = ("loss", "grad_norm", "tokens_per_second", "mfu")
    records = [
        {"event": "train", "step": 1 << (8 * i), "tokens": i, **dict.fromkeys(names, value)}
        for i, value in enumerate(values[:7])
    ] + [{"event": "eval", "step": (1 << 63) - 1, "time": 9e10, "val_loss": value} for value in values]
    text = "".join(json.dumps(r) + "\n" for r in records).replace("Infinity", "1e999")
    settings = 'max_iters = "x"\nbatch_size = true\nblock_size = 1.5\n'
    run = write_log(tmp_path / "run", [], settings)
    (run / "log.jsonl").write_text(text)
    checked(page([report_on(run)], DEFAULTS))
    plot_runs([run], tmp_path / "a.svg")
    (run / "config.toml").write_text("a = " + "[" * 100_000)
    assert report_on(run).settings == {}
