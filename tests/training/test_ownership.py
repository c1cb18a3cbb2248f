"""A run deletes and replaces nothing that it did not write."""

import importlib.util
import json
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.formats.run_folder import folder_of, saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.loop import train

SETTINGS = {
    "max_iters": 4, "sample_interval": 2, "sample_tokens": 3, "eval_interval": 2, "llmc_log": True,
    "build_nanogpt_log": True, "write_tensors": True, "snapshot_interval": 2,
}  # fmt: skip
FOREIGN = (
    "checkpoints/step_500/model.bin", "checkpoints/step_0000500/model.bin", "checkpoints/model_step_7.pt",
    "checkpoints/.other.tmp", "checkpoints/.step_0000009.tmp/theirs.bin", "samples/step_9.txt", "samples/notes.txt",
    "snapshots/step_9.safetensors", "snapshots/step_0000008.safetensors",
    "llmc/notes.txt", "tensorboard/events.out.tfevents.1.host.2.0", "events.out.tfevents.1.host.2.0",
    "damaged_step_0000001_1/x", "notes.txt",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("theirs\n")


def test_overwrite_deletes_all_of_the_run_and_nothing_else(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(**SETTINGS, tensorboard_log=importlib.util.find_spec("tensorboard") is not None))
    for name in FOREIGN:
        if name != "checkpoints/step_0000500/model.bin":  # which would be in the new run's way
            put(run, name)
    before = contents(run)
    train(tiny(max_iters=1, overwrite=True, eval_interval=0))
    after = contents(run)
    assert {name: data for name, data in after.items() if data == b"theirs\n"} == {
        name: b"theirs\n" for name in FOREIGN if name in before
    }
    left = {name for name in after if name in before and after[name] == before[name]} - set(FOREIGN)
    assert left == {".lock"}
    assert not [name for name in after if "llmc/" in name and name not in FOREIGN]
    assert saved_steps(run) == [1]


@pytest.mark.parametrize(
    "name",
    ["config.toml", "log.jsonl", "checkpoints/best.json", "samples/step_0000002.txt", "llmc/main.log",
     "llmc/gpt2_124M.bin", "build-nanogpt/log.txt", "checkpoints/step_0000002/model.bin",
     "snapshots/step_0000002.safetensors"],
)  # fmt: skip
@pytest.mark.parametrize("changes", [{}, {"overwrite": True}, {"init_from": "auto"}])
def test_what_would_be_replaced_is_refused_by_name(tiny, tmp_path: Path, name: str, changes: dict) -> None:
    run = tmp_path / "run"
    put(run, name)
    with pytest.raises(UserError) as refusal:
        train(tiny(**SETTINGS, **changes))
    assert (
        name.removesuffix("/model.bin") in str(refusal.value)
        or "already holds a run" in str(refusal.value)
        or ("damaged" in str(refusal.value))
    )
    assert contents(run) == {name: b"theirs\n"}


def test_a_fresh_run_goes_beside_what_is_not_in_its_way(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = [name for name in FOREIGN if name != "checkpoints/step_0000500/model.bin"]
    for name in names:
        put(run, name)
    train(tiny(max_iters=2, keep_checkpoints=1, checkpoint_interval=1))
    assert {name for name, data in contents(run).items() if data == b"theirs\n"} == set(names)


def test_the_log_of_a_run_whose_checkpoints_are_gone_is_kept(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(**SETTINGS))
    (run / "checkpoints").rename(tmp_path / "moved")
    before = contents(run)
    with pytest.raises(UserError, match=r"the log of a run without checkpoints; .* --init_from=auto, .* --overwrite"):
        train(tiny(**SETTINGS))
    assert contents(run) == before
    train(tiny(**SETTINGS | {"max_iters": 2}, init_from="auto"))  # as under a supervisor that starts it again
    assert (run / "log.jsonl").read_bytes().startswith(before["log.jsonl"])
    steps = [r["step"] for r in read_log(run) if r["event"] == "train"]
    assert steps == [1, 2]


def test_a_log_without_updates_is_in_nobodys_way(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(max_iters=0))
    (run / "checkpoints").rename(tmp_path / "moved")
    assert train(tiny(max_iters=2)).step == 2


def test_samples_that_were_edited_are_not_deleted(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(**SETTINGS))
    (run / "samples" / "step_0000002.txt").write_text("my favourite\n")
    with pytest.raises(UserError, match=r"step_0000002\.txt was not written by a run"):
        train(tiny(**SETTINGS, overwrite=True))
    train(tiny(max_iters=1, overwrite=True))
    assert [p.name for p in (run / "samples").iterdir()] == ["step_0000002.txt"]


def test_checkpoints_that_were_moved_and_linked_stay_and_can_be_resumed(tiny, tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    settings = {"eval_interval": 0, "checkpoint_interval": 2, "keep_checkpoints": 1}
    train(tiny(**settings, max_iters=4))
    disk.mkdir()
    folder_of(run, 4).rename(disk / "four")
    folder_of(run, 4).symlink_to(disk / "four")
    assert train(tiny(**settings, max_iters=8, init_from="resume")).step == 8
    assert train(tiny(**settings, max_iters=10, init_from="resume")).step == 10
    assert saved_steps(run) == [10, 4]
    assert (disk / "four" / "manifest.json").is_file()
    folder_of(run, 4).unlink()
    assert train(tiny(**settings, max_iters=12, init_from="resume")).step == 12


def test_a_leftover_link_does_not_stop_a_resume(tiny, tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    train(tiny(max_iters=2))
    disk.mkdir()
    (disk / "x").write_text("mine")
    (run / "checkpoints" / ".step_0000001.tmp").symlink_to(disk)
    assert train(tiny(max_iters=4, init_from="resume")).step == 4
    assert (disk / "x").read_text() == "mine"


def test_best_json_is_ours_only_as_we_write_it(tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for theirs in ({"step": 3}, {"step": 3, "val_loss": 1.0, "more": 1}, [1]):
        (run / "checkpoints" / "best.json").write_text(json.dumps(theirs))
        with pytest.raises(UserError, match=r"best\.json was not written by a run"):
            train(tiny())
