import sys
from types import ModuleType, SimpleNamespace

import pytest

from gpt2.errors import UserError
from gpt2.training.loop import train


def test_weights_and_biases_is_told_every_number(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, dict]] = []
    closed: list[bool] = []
    wandb = ModuleType("wandb")
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: closed.append(True))
    wandb.init = lambda **settings: told.append((-1, settings)) or run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    train(tiny(max_iters=4, eval_interval=2, wandb_log=True, wandb_project="p"))
    (_, settings), *told = told
    assert settings["project"] == "p"
    assert settings["config"]["batch_size"] == 4
    assert [step for step, values in told if "val_loss" in values] == [0, 2, 4]
    assert [step for step, values in told if "loss" in values] == [1, 2, 3, 4]
    assert closed == [True]


@pytest.mark.parametrize(
    ("switch", "module"), [("wandb_log", "wandb"), ("tensorboard_log", "torch.utils.tensorboard")]
)
def test_a_missing_package_is_named(tiny, switch: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{switch} needs the {module.rsplit('.')[-1]} package"):
        train(tiny(**{switch: True}))
