"""Trackers see everything, and whatever goes wrong in one costs the run a line."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from runs import curve, final_weights

from gpt2.errors import UserError
from gpt2.runlog.trackers import indented
from gpt2.training.loop import train

SETTINGS = {"max_iters": 4, "eval_interval": 2, "sample_interval": 4, "sample_tokens": 5, "sample_start": "the"}
SWITCHES = {"wandb_log": "wandb", "trackio_log": "trackio", "tensorboard_log": "torch.utils.tensorboard"}


class Failure(Exception):
    pass


class Fake:
    """A package that is told numbers and texts, and can be made to raise."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.settings: dict = {}
        self.numbers: list[tuple[int, str, float]] = []
        self.texts: list[tuple[int, str]] = []
        self.closed = 0

    def does(self, what: str) -> None:
        if what == self.failing:
            raise Failure(f"cannot {what}\nand more")

    def init(self, **settings) -> SimpleNamespace:
        self.does("open")
        self.settings = settings
        return SimpleNamespace(log=self.log, finish=self.close)

    def log(self, values: dict, step: int) -> None:
        self.does("log")
        for name, value in values.items():
            if name == "sample":
                self.texts.append((step, value))
            else:
                self.numbers.append((step, name, value))

    def close(self) -> None:
        self.does("close")
        self.closed += 1

    def writer(self, folder: str) -> SimpleNamespace:
        """TensorBoard's SummaryWriter."""
        self.does("open")
        return SimpleNamespace(
            add_scalar=lambda name, value, step: self.log({name: value}, step),
            add_text=lambda name, text, step: self.log({name: text}, step),
            close=self.close,
        )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    """Puts a fake in the place of the package behind a switch."""

    def install(switch: str, failing: str = "") -> Fake:
        fake, module = Fake(failing), ModuleType(SWITCHES[switch])
        module.init, module.SummaryWriter = fake.init, fake.writer
        module.Html = module.Markdown = str
        monkeypatch.setitem(sys.modules, SWITCHES[switch], module)
        return fake

    return install


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_tracker_is_told_numbers_evaluations_and_samples(tiny, tmp_path: Path, switch: str, install) -> None:
    fake = install(switch)
    train(tiny(**SETTINGS, **{switch: True}, wandb_project="p", wandb_run_name="n"))
    if switch != "tensorboard_log":
        assert (fake.settings["project"], fake.settings["name"]) == ("p", "n")
        assert fake.settings["config"]["batch_size"] == 4
    assert [step for step, name, _ in fake.numbers if name == "val_loss"] == [0, 2, 4]
    logged = [(step, loss) for event, step, loss, *_ in curve(tmp_path / "run") if event == "train"]
    assert [(step, value) for step, name, value in fake.numbers if name == "loss"] == logged
    assert {name for _, name, _ in fake.numbers} >= {"lr", "grad_norm", "tokens_per_second", "mfu", "train_loss"}
    assert [step for step, _ in fake.texts] == [0, 4]
    assert all("the" in text for _, text in fake.texts)
    assert fake.closed == 1


@pytest.mark.parametrize("failing", ["open", "log", "close"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_tracker_that_fails_costs_one_line(
    tiny, tmp_path: Path, switch: str, failing: str, install, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(**SETTINGS, dropout=0.1))
    (tmp_path / "run").rename(tmp_path / "without")
    install(switch, failing)
    others = [install(other) for other in SWITCHES if other != switch]
    capfd.readouterr()
    train(tiny(**SETTINGS, dropout=0.1, **dict.fromkeys(SWITCHES, True)))
    told = [line for line in capfd.readouterr().err.splitlines() if "goes on without" in line]
    assert told == [f"{switch} failed (cannot {failing}); the run goes on without it"]
    assert curve(tmp_path / "run") == curve(tmp_path / "without")
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "without")
    for other in others:
        assert [step for step, name, _ in other.numbers if name == "loss"] == [1, 2, 3, 4]
        assert other.closed == 1


def test_the_real_tensorboard_takes_what_it_is_told(tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(**SETTINGS, tensorboard_log=True))
    assert "failed" not in capfd.readouterr().err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [r[2] for r in curve(tmp_path / "run") if r[0] == "train"]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses, rel=1e-6)
    assert [e.step for e in events.Tensors("sample/text_summary")] == [0, 4]


def test_the_real_wandb_takes_what_it_is_told(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    train(tiny(**SETTINGS, wandb_log=True))
    assert "failed" not in capfd.readouterr().err
    assert [p.suffix for p in tmp_path.glob("wandb/offline-run-*/*.wandb")] == [".wandb"]


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_missing_package_is_named(tiny, tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SWITCHES[switch]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{switch} needs the {module.rsplit('.')[-1]} package"):
        train(tiny(**{switch: True}))
    assert not (tmp_path / "run").exists()


def test_a_broken_package_is_named(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"trackio_log: the trackio package is broken \(division by zero\)"):
        train(tiny(trackio_log=True))


def test_texts_are_shown_as_they_are() -> None:
    assert indented("# no\n\n* heading") == "    # no\n    \n    * heading\n"
