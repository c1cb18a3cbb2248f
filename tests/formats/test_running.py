"""Reading a run while it trains and removes checkpoints."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from toys import characters, toy

from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.formats import run_folder, safetensors_file
from gpt2.formats.open import build, load, open_model
from gpt2.formats.run_folder import folder_of, saved_steps
from gpt2.model import GPT
from gpt2.optim.optimizers import make_optimizers
from gpt2.training import recipes
from gpt2.training.recipes import resume_config, run_settings

LOADS = 200


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., None]:
    """Saves a checkpoint, whose first weight is its step, and removes all but the best one and the `keep` newest."""
    model = toy(block_size=4, n_layer=1)
    optimizers = make_optimizers(model, 1e-2, (0.9, 0.95), 0.1)

    def make(step: int, best_step: int | None = None, keep: int = 1) -> None:
        state = checkpoint.TrainState(step, best_step=best_step, best_val_loss=1.0)
        with torch.no_grad():
            model.transformer.wte.weight[0, 0] = step
        about = {"train": {"max_iters": step}}
        checkpoint.write(checkpoint.take(tmp_path, state, model, optimizers, characters(33), about))
        checkpoint.tidy(tmp_path, state, keep, pytest.fail)

    return make


def step_in(model: GPT) -> int:
    return int(model.transformer.wte.weight[0, 0].item())


def on_call(number: int, function: Callable, act: Callable[[], None]) -> Callable:
    """The function, which calls `act` first when it is called for the `number`-th time."""
    calls = [0]

    def watched(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == number:
            act()
        return function(*arguments)

    return watched


MOMENTS = [
    (run_folder, "manifest_problem", 1),
    (run_folder, "read_description", 1),
    (safetensors_file, "read_tensors", 1),
    (safetensors_file, "read_tensors", 2),
]
"""Functions that reading a checkpoint calls, and the call before which the run goes on."""


@pytest.mark.parametrize(("module", "name", "call"), MOMENTS)
@pytest.mark.parametrize("best_step", [None, 1])
def test_a_checkpoint_removed_between_listing_and_opening_gives_way_to_the_next(
    module: ModuleType,
    name: str,
    call: int,
    best_step: int | None,
    save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(1, best_step)
    monkeypatch.setattr(module, name, on_call(call, getattr(module, name), lambda: save(2, best_step and 2)))
    model, _ = load(str(tmp_path))
    assert step_in(model) == 2
    assert saved_steps(tmp_path) == [2]


@pytest.mark.parametrize(("module", "name", "call"), MOMENTS)
def test_the_best_checkpoint_gives_way_to_a_better_one_and_not_to_the_newest(
    module: ModuleType, name: str, call: int, save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1, best_step=1)
    save(2, best_step=1)

    def go_on() -> None:
        save(3, best_step=3, keep=2)  # removes the first
        save(4, best_step=3, keep=3)

    monkeypatch.setattr(module, name, on_call(call, getattr(module, name), go_on))
    assert step_in(load(str(tmp_path))[0]) == 3


def test_a_list_that_is_empty_for_a_moment_is_read_again(
    save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that changes while the system lists it may show neither the old checkpoint nor the new one."""
    save(1)
    listed = iter([[], [1]])
    monkeypatch.setattr(run_folder, "saved_steps", lambda out_dir: next(listed, [1]))
    assert step_in(build(run_folder.open_run(tmp_path))) == 1
    listed = iter([[], [1]])
    assert run_settings(tmp_path) == {"max_iters": 1}


def test_an_opened_model_can_be_read_after_its_files_are_removed(save, tmp_path: Path) -> None:
    save(1)
    source = open_model(str(tmp_path))
    shutil.rmtree(tmp_path / "checkpoints")
    assert step_in(build(source)) == 1
    assert source.tokenizer.vocab_size == 33


def test_the_settings_of_a_run_come_from_the_next_checkpoint(
    save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)
    monkeypatch.setattr(recipes, "read_description", on_call(1, recipes.read_description, lambda: save(2)))
    assert resume_config(tmp_path).max_iters == 2


@pytest.mark.parametrize(("module", "name", "call"), MOMENTS)
def test_a_named_checkpoint_that_is_removed_gives_one_line(
    module: ModuleType, name: str, call: int, save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1)
    monkeypatch.setattr(module, name, on_call(call, getattr(module, name), lambda: save(2)))
    with pytest.raises(UserError, match="step_0000001 was removed by its run; name the run, or another"):
        open_model(str(folder_of(tmp_path, 1)))


def test_a_damaged_checkpoint_is_still_named(save, tmp_path: Path) -> None:
    save(1)
    (folder_of(tmp_path, 1) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"step_0000001 is damaged \(model.safetensors is missing\); use another one"):
        open_model(str(folder_of(tmp_path, 1)))
    line = "damaged: step_0000001 \\(model.safetensors is missing\\); put back a copy of one, or train"
    with pytest.raises(UserError, match=line):
        open_model(str(tmp_path))


def test_a_run_that_saves_and_removes_without_pause_can_always_be_read(save, tmp_path: Path) -> None:
    save(1, best_step=1)
    done = threading.Event()

    def train() -> None:
        step = 1
        while not done.is_set():
            step += 1
            save(step, best_step=step - step % 3 or 1)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(LOADS):
            assert step_in(load(str(tmp_path))[0]) >= 1
            assert run_settings(tmp_path)["max_iters"] >= 1
    finally:
        done.set()
        trainer.join()
