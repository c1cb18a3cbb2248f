"""docs/records.md says what log.jsonl holds."""

import re
from pathlib import Path

from gpt2.runlog.records import read_log
from gpt2.training.loop import train

PAGE = Path(__file__).parent.parent.parent / "docs" / "records.md"
OF_ALL = {"event", "step", "time"}
AS_TRAIN = {"loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "memory"}


def documented() -> dict[str, set[str]]:
    """The fields of each event's row in the page's table."""
    fields = {}
    for line in PAGE.read_text().splitlines():
        if (cells := line.split(" | "))[0].startswith("| `") and len(cells) == 3:
            for event in re.findall(r"`(\w+)`", cells[0]):
                fields.setdefault(event, set(re.findall(r"`(\w+)`", cells[2])))
    return fields


def test_every_field_is_documented_and_every_documented_one_is_there(tiny, tmp_path: Path) -> None:
    page = documented()
    train(tiny(max_iters=5, sample_interval=5, sample_tokens=3))
    train(tiny(max_iters=6, init_from="resume"))
    (tmp_path / "run").rename(tmp_path / "good")
    train(tiny(max_iters=9, learning_rate=1e30, min_lr=1e30, grad_clip=0.0, eval_interval=0))
    found = read_log(tmp_path / "good") + read_log(tmp_path / "run")
    for event in ("start", "resume", "train", "eval", "sample", "checkpoint", "end", "skip"):
        records = [r.keys() - OF_ALL for r in found if r["event"] == event]
        expected = page[event] - {"skipped_batches", "because"} if event in ("start", "resume") else page[event]
        if event == "eval":
            expected -= {"acc", "acc_norm"}  # of HellaSwag, in records of their own
        if event == "skip":
            expected = AS_TRAIN | {"rows"}
        assert records, event
        assert all(keys == expected for keys in records), (event, records, expected)
    [*_, end] = (r for r in found if r["event"] == "end")
    assert all(f"`{part}`" in PAGE.read_text() for part in end["seconds"])
