"""`gpt2 prune` deletes checkpoints by a rule, and nothing else."""

import json
from pathlib import Path

import pytest
from runs import read_only

from gpt2.checkpoint import TrainState, latest, record_best
from gpt2.files import locked
from gpt2.formats.run_folder import folder_of, saved_steps
from gpt2.training.loop import train


@pytest.fixture
def run(tiny, tmp_path: Path) -> Path:
    """A run with checkpoints at 2, 4, … 12, whose best one is that of step 4."""
    train(tiny(max_iters=12, eval_interval=2, eval_iters=1, keep_checkpoints=0))
    record_best(tmp_path / "run", TrainState(best_step=4, best_val_loss=1.0))
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_only_yes_deletes_and_the_best_and_the_latest_stay(run: Path, gpt2_command) -> None:
    before = content(run)
    status, out, err = gpt2_command("prune", run)
    assert (status, content(run)) == (0, before), err
    assert "step 4 (the best)" in out
    assert "step 12 (the latest)" in out
    assert "add --yes" in out
    status, out, err = gpt2_command("prune", run, "--yes", "--json")
    assert status == 0, err
    assert saved_steps(run) == [12, 4]
    after = content(run)
    assert after.items() <= before.items()
    (figures,) = json.loads(out)["runs"]
    assert figures["bytes"] == sum(len(before[name]) for name in before.keys() - after.keys())
    assert [entry["step"] for entry in figures["kept"]] == [12, 4]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (["--keep_last=3"], [12, 10, 8, 4]),
        (["--keep_every=6"], [12, 6, 4]),
        (["--keep_every=4", "--keep_last=2"], [12, 10, 8, 4]),
        (["--keep_last=100"], [12, 10, 8, 6, 4, 2]),
    ],
)
def test_rules_keep_more(rule: list[str], kept: list[int], run: Path, gpt2_command) -> None:
    assert gpt2_command("prune", run, *rule, "--yes")[0] == 0
    assert saved_steps(run) == kept


def test_the_latest_intact_one_stays_where_a_newer_one_is_damaged(run: Path, gpt2_command) -> None:
    model = folder_of(run, 12) / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x01")
    folder_of(run, 2).rename(run / "checkpoints" / "damaged_step_0000002_17")
    status, _, err = gpt2_command("prune", run, "--yes")
    assert status == 0, err
    assert saved_steps(run) == [12, 10, 4]
    assert not (run / "checkpoints" / "damaged_step_0000002_17").exists()
    assert latest(run, lambda line: None) == folder_of(run, 10)


def test_nothing_is_deleted_where_no_checkpoint_is_intact(run: Path, gpt2_command) -> None:
    for step in saved_steps(run):
        (folder_of(run, step) / "state.json").write_text("{}")
    before = content(run)
    status, _, err = gpt2_command("prune", run, "--yes")
    assert status == 2
    assert "nothing is deleted, because every checkpoint in" in err
    assert content(run) == before


def test_what_is_no_checkpoint_of_the_run_is_never_touched(run: Path, tmp_path: Path, gpt2_command) -> None:
    folder_of(run, 2).rename(tmp_path / "elsewhere")
    folder_of(run, 2).symlink_to(tmp_path / "elsewhere")
    (folder_of(run, 6) / "notes.txt").write_text("mine")
    folder_of(run, 3).mkdir()
    (run / "checkpoints" / "step_0000005").write_text("a file")
    assert gpt2_command("prune", run, run, "--yes")[0] == 0
    assert (folder_of(run, 6) / "notes.txt").exists()
    assert (tmp_path / "elsewhere" / "model.safetensors").exists()
    assert folder_of(run, 3).is_dir()
    assert (run / "checkpoints" / "step_0000005").read_text() == "a file"
    assert not folder_of(run, 8).exists()


@pytest.mark.parametrize("words", [[], ["--yes"]])
def test_a_run_that_trains_is_refused(words: list[str], run: Path, gpt2_command) -> None:
    before = content(run)
    with locked(run / ".lock") as is_free:
        assert is_free
        status, out, err = gpt2_command("prune", run, *words)
    assert (status, out) == (2, "")
    assert "is training now" in err
    assert content(run) == before


def test_a_folder_without_a_run_is_a_mistake(tmp_path: Path, gpt2_command) -> None:
    status, _, err = gpt2_command("prune", tmp_path, "--yes")
    assert status == 2
    assert "holds no checkpoints" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_described_but_not_pruned(run: Path, gpt2_command, monkeypatch) -> None:
    monkeypatch.chdir(run.parent)
    _, expected, _ = gpt2_command("prune", "run")
    with read_only(Path("run")):
        assert gpt2_command("prune", "run") == (0, expected, "")
        status, _, err = gpt2_command("prune", "run", "--yes")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("gpt2: cannot write to run (Permission denied); make that folder writable")
    assert saved_steps(run) == [12, 10, 8, 6, 4, 2]
