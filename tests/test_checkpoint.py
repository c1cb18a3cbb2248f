import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.files import manifest_problem
from gpt2.formats.open import load
from gpt2.model import GPT, GPTConfig
from gpt2.optim.adamw import adamw
from gpt2.tokenizers import CharTokenizer

CONFIG = GPTConfig(block_size=8, vocab_size=5, n_layer=1, n_head=1, n_embd=8, pad_vocab=64)


def saved(out_dir: Path, steps: list[int]) -> GPT:
    """A run folder with checkpoints; returns the model of the last."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = adamw(model, 1e-2, (0.9, 0.95), 0.1)
    idx = torch.tensor([[1, 2, 3]])
    for step in steps:
        model(idx, idx)[1].backward()
        optimizer.step()
        state = checkpoint.TrainState(step=step)
        checkpoint.save(out_dir, state, model, optimizer, CharTokenizer("abcde"), {})
    return model


def test_weights_optimizer_and_state_come_back(tmp_path: Path) -> None:
    model = saved(tmp_path, [3])
    folder = checkpoint.folder_of(tmp_path, 3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    twin = GPT(CONFIG)
    optimizer = adamw(twin, 1e-2, (0.9, 0.95), 0.1)
    state = checkpoint.restore(folder, twin)
    checkpoint.restore_optimizer(folder, optimizer)
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


def test_any_flipped_bit_and_any_truncation_is_detected(tmp_path: Path) -> None:
    saved(tmp_path, [1])
    folder = checkpoint.folder_of(tmp_path, 1)
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for _ in range(12):
            at, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
            damaged = bytearray(content)
            damaged[at] ^= bit
            if path.name == "manifest.json" and json_equal(content, bytes(damaged)):
                continue  # white space, or a digit of a number written another way
            path.write_bytes(damaged)
            assert manifest_problem(folder), f"{path.name} byte {at}"
            path.write_bytes(content[:at])
            assert manifest_problem(folder), f"{path.name} cut at {at}"
        path.write_bytes(content)
    assert manifest_problem(folder) is None


def json_equal(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


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
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.latest(tmp_path, notes.append)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, [1, 2, 3, 4, 5])
    checkpoint.prune(tmp_path, keep=2, best_step=2)
    assert checkpoint.saved_steps(tmp_path) == [5, 4, 2]
    checkpoint.prune(tmp_path, keep=0, best_step=None)
    assert checkpoint.saved_steps(tmp_path) == [5, 4, 2]


def test_a_save_that_fails_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, [1])

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, [2])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_0000001"]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, [2])


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
    checkpoint.note_best(tmp_path, checkpoint.TrainState(best_step=2, best_val_loss=1.5))
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
