import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt2 import checkpoint, tensor_file
from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.formats.open import load
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizers import make_optimizers
from gpt2.tokenizers import CharTokenizer

CONFIG = GPTConfig(block_size=8, vocab_size=5, n_layer=1, n_head=1, n_embd=8, pad_vocab=64)
CHARS = CharTokenizer("abcde")


def saved(out_dir: Path, steps: list[int]) -> GPT:
    """A run folder with checkpoints; returns the model of the last."""
    return trained(steps, lambda *taken: checkpoint.write(checkpoint.take(out_dir, *taken, CHARS, {})))[0]


def trained(steps: list[int], each: Callable[..., None] | None = None) -> tuple[GPT, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    [optimizer] = make_optimizers(model, 1e-2, (0.9, 0.95), 0.1)
    idx = torch.tensor([[1, 2, 3]])
    for step in steps:
        model(idx, idx)[1].backward()
        optimizer.step()
        if each:
            each(checkpoint.TrainState(step=step), model, [optimizer])
    return model, optimizer


def test_weights_optimizer_and_state_come_back(tmp_path: Path) -> None:
    model = saved(tmp_path, [3])
    folder = checkpoint.folder_of(tmp_path, 3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    twin = GPT(CONFIG)
    [optimizer] = make_optimizers(twin, 1e-2, (0.9, 0.95), 0.1)
    state = checkpoint.restore(folder, twin)
    checkpoint.restore_optimizers(folder, [optimizer])
    assert state == checkpoint.TrainState(step=3)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert len(optimizer.state) == len(list(twin.parameters()))


def test_vocabulary_padding_is_not_saved(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    tensors = load_file(checkpoint.folder_of(tmp_path, 1) / "model.safetensors")
    assert tensors["transformer.wte.weight"].shape == (5, 8)
    assert "lm_head.weight" not in tensors


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    for path in checkpoint.folder_of(tmp_path, 1).iterdir():
        assert path.suffix in (".safetensors", ".json")


DAMAGES = int(os.environ.get("GPT2_TEST_DAMAGES", "40"))
"""How often each kind of damage is done; `make test-faults` does it 500 times."""


def flip_a_bit(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def zero_a_page(content: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(0, len(content), 512)
    content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, zero_a_page])
def test_any_damage_is_detected(damage: Callable[[bytearray, random.Random], None], tmp_path: Path) -> None:
    saved(tmp_path, [1])
    folder, rng, done = checkpoint.folder_of(tmp_path, 1), random.Random(0), 0
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    while done < DAMAGES:
        path = rng.choice(list(files))
        damaged = bytearray(files[path])
        damage(damaged, rng)
        if damaged == files[path]:
            continue  # a page that was zero
        path.write_bytes(damaged)
        assert manifest_problem(folder), path.name
        path.write_bytes(files[path])
        done += 1
    assert manifest_problem(folder) is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    saved(tmp_path, [1, 2, 3])
    (checkpoint.folder_of(tmp_path, 3) / "model.safetensors").write_bytes(b"x")
    (checkpoint.folder_of(tmp_path, 2) / "manifest.json").unlink()
    notes: list[str] = []
    assert checkpoint.latest(tmp_path, notes.append) == checkpoint.folder_of(tmp_path, 1)
    assert ["step_0000003" in notes[0], "step_0000002" in notes[1], len(notes)] == [True, True, 2]
    assert checkpoint.saved_steps(tmp_path) == [1]  # the damaged ones no longer count as kept
    assert len(list((tmp_path / "checkpoints").glob("damaged_*"))) == 2
    (checkpoint.folder_of(tmp_path, 1) / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"every checkpoint .*: step_0000001 \(state.json has 2 bytes where \d+ were"):
        checkpoint.latest(tmp_path, notes.append)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, [1, 2, 3, 4, 5])
    checkpoint.prune(tmp_path, keep=2, protected={2})
    assert checkpoint.saved_steps(tmp_path) == [5, 4, 2]
    checkpoint.prune(tmp_path, keep=0, protected=())
    assert checkpoint.saved_steps(tmp_path) == [5, 4, 2]


def test_a_save_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, [1])

    def full(*args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "pwrite"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(
                UserError, match=r"step_0000002 \(No space left on device\): it needs [\d,]+ bytes and"
            ):
                saved(tmp_path, [2])
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0000001"]


def test_a_full_disk_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda path: 1234)
    with pytest.raises(UserError, match="and 1,234 are free"):
        saved(tmp_path, [1])
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that dies is forked")
def test_whatever_a_save_was_doing_when_its_process_died_the_last_whole_checkpoint_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "PIECE", 400)  # so that many writes make a file
    model, optimizer = trained([0])
    before, after = (
        checkpoint.take(tmp_path, checkpoint.TrainState(step, best_step=step), model, [optimizer], CHARS, {})
        for step in (1, 2)
    )
    seen, point = [], 0
    while not seen or seen[-1] != 0:
        point += 1
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        checkpoint.write(before)
        checkpoint.tidy(tmp_path, checkpoint.TrainState(1, best_step=1), 1, pytest.fail)
        if (pid := os.fork()) == 0:
            die_after_call(point)
            checkpoint.write(after)
            checkpoint.tidy(tmp_path, checkpoint.TrainState(2, best_step=2), 1, pytest.fail)
            os._exit(0)
        seen.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        found = checkpoint.latest(tmp_path, pytest.fail)
        assert found.name == "step_0000001" if seen[-1] in BEFORE_THE_NAME else found.name.startswith("step_")
        load(str(tmp_path))  # the run, which stands for its best checkpoint
    assert found.name == "step_0000002"
    assert {OPERATIONS[code - 1] for code in seen[:-1]} >= {"pwrite", "write", "fsync", "replace", "mkdir", "rmdir"}
    checkpoint.write(replace(after, folder=checkpoint.folder_of(tmp_path, 3)))
    assert checkpoint.saved_steps(tmp_path) == [3, 2]


OPERATIONS = (
    "write",
    "pwrite",
    "truncate",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "open",
    "close",
)
BEFORE_THE_NAME = {1 + OPERATIONS.index(name) for name in ("pwrite", "truncate", "mkdir")}


def die_after_call(number: int) -> None:
    """End this process, and run nothing more in it, after so many calls that change what is on disk."""
    left = number

    def watch(frame: FrameType, event: str, function: Any) -> None:
        nonlocal left
        if event == "c_return" and (name := getattr(function, "__name__", "")) in OPERATIONS:
            left -= 1
            if not left:
                os._exit(1 + OPERATIONS.index(name))

    sys.setprofile(watch)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up open files in /proc")
def test_files_are_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(fd: int) -> None:
        events.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", lambda self, target: events.append("rename") or replace(self, target))
    saved(tmp_path, [1])
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert {Path(p).name for p in before} >= {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    assert after == [str(tmp_path / "checkpoints")]


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, [1, 2, 3])
    checkpoint.record_best(tmp_path, checkpoint.TrainState(best_step=2, best_val_loss=1.5))
    best = load_file(checkpoint.folder_of(tmp_path, 2) / "model.safetensors")
    model, tokenizer = load(str(tmp_path))
    assert tokenizer.decode_bytes([0, 4]) == b"ae"
    assert torch.equal(model.transformer.wte.weight, best["transformer.wte.weight"])
    last, _ = load(str(checkpoint.folder_of(tmp_path, 3)))
    (checkpoint.folder_of(tmp_path, 2) / "model.safetensors").unlink()  # then the latest has to do
    assert torch.equal(load(str(tmp_path))[0].transformer.wte.weight, last.transformer.wte.weight)
    assert not torch.equal(last.transformer.wte.weight, best["transformer.wte.weight"])


def test_a_damaged_checkpoint_is_not_loaded_by_name(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    folder = checkpoint.folder_of(tmp_path, 1)
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json"):
        load(str(folder))


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", "gpt2 checkpoint 2")
    saved(tmp_path, [1])
    with pytest.raises(UserError, match="gpt2 checkpoint 2"):
        load(str(tmp_path))


def test_only_what_this_program_wrote_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, [1, 2, 3, 4, 5, 6])
    moved = tmp_path / "elsewhere"
    checkpoint.folder_of(tmp_path, 1).rename(moved)
    checkpoint.folder_of(tmp_path, 1).symlink_to(moved)
    (checkpoint.folder_of(tmp_path, 2) / "notes.txt").write_text("mine")
    shutil.rmtree(checkpoint.folder_of(tmp_path, 3))
    checkpoint.folder_of(tmp_path, 3).mkdir()
    (checkpoint.folder_of(tmp_path, 3) / "model.safetensors").write_text("another program's")
    checkpoint.prune(tmp_path, keep=1, protected=())
    assert checkpoint.saved_steps(tmp_path) == [6, 3, 2, 1]
    assert (moved / "manifest.json").exists()


def test_a_checkpoint_that_cannot_be_removed_is_said_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, [1, 2])

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    notes: list[str] = []
    checkpoint.tidy(tmp_path, checkpoint.TrainState(2), 1, notes.append)
    assert len(notes) == 1
    assert "cannot remove old checkpoints" in notes[0]


def test_what_is_no_checkpoint_of_ours_is_not_renamed(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    foreign = checkpoint.folder_of(tmp_path, 2)
    foreign.mkdir()
    (foreign / "pytorch_model.bin").write_text("mine")
    notes: list[str] = []
    assert checkpoint.latest(tmp_path, notes.append).name == "step_0000001"
    assert (foreign / "pytorch_model.bin").read_text() == "mine"
    assert "is no checkpoint of this program" in notes[0]
