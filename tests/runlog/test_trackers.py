"""Trackers see everything, and whatever goes wrong in one costs the run a line."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from runs import curve, final_weights

from gpt2.errors import UserError
from gpt2.runlog import trackers
from gpt2.runlog.trackers import TrackioTracker, WandbTracker, indented
from gpt2.training.loop import train

SETTINGS = {"max_iters": 4, "eval_interval": 2, "sample_interval": 4, "sample_tokens": 5, "sample_start": "the"}
SWITCHES = {"wandb_log": "wandb", "trackio_log": "trackio", "tensorboard_log": "torch.utils.tensorboard"}


class Failure(Exception):
    pass


class Fake:
    """A package that receives numbers and texts. `faults` says what goes wrong where: in open, log or close."""

    def __init__(self, **faults: Callable[[], None]) -> None:
        self.faults = faults
        self.settings: dict = {}
        self.numbers: list[tuple[int, str, float]] = []
        self.texts: list[tuple[int, str]] = []
        self.opened = self.closed = self.torn_down = 0

    def does(self, what: str) -> None:
        self.faults.get(what, lambda: None)()

    def init(self, **settings) -> SimpleNamespace:
        self.does("open")
        self.opened += 1
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

    def teardown(self) -> None:
        self.torn_down += 1

    def writer(self, folder: str, **settings) -> SimpleNamespace:
        """TensorBoard's SummaryWriter."""
        self.init(**settings)
        return SimpleNamespace(
            add_scalar=lambda name, value, step: self.log({name: value}, step),
            add_text=lambda name, text, step: self.log({name: text}, step),
            close=self.close,
        )


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    """Puts a fake in the place of the package behind a switch."""

    def install(switch: str, **faults: Callable[[], None]) -> Fake:
        fake, module = Fake(**faults), ModuleType(SWITCHES[switch])
        module.init, module.SummaryWriter, module.teardown = fake.init, fake.writer, fake.teardown
        module.Html = module.Markdown = str
        module.Settings = dict
        module.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
        module.login = lambda verify: fake.does("login")
        monkeypatch.setitem(sys.modules, SWITCHES[switch], module)
        return fake

    return install


@pytest.fixture
def hang() -> Iterator[Callable[[], None]]:
    """Waits until the test is over."""
    over = threading.Event()
    yield over.wait
    over.set()


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
    assert (fake.opened, fake.closed) == (1, 1)


@pytest.mark.parametrize(
    ("failing", "error", "told"),
    [
        ("open", Failure("cannot open\nand more"), "cannot open"),
        ("log", KeyboardInterrupt(), "KeyboardInterrupt"),
        ("close", SystemExit(3), "3"),
    ],
)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_tracker_that_fails_costs_one_line(
    tiny,
    tmp_path: Path,
    switch: str,
    failing: str,
    error: BaseException,
    told: str,
    install,
    capfd: pytest.CaptureFixture[str],
) -> None:
    train(tiny(**SETTINGS, dropout=0.1))
    (tmp_path / "run").rename(tmp_path / "without")
    install(switch, **{failing: raising(error)})
    others = [install(other) for other in SWITCHES if other != switch]
    capfd.readouterr()
    train(tiny(**SETTINGS, dropout=0.1, **dict.fromkeys(SWITCHES, True)))
    assert left_out(capfd) == [f"{switch} failed ({told}); the run goes on without it"]
    assert curve(tmp_path / "run") == curve(tmp_path / "without")
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "without")
    for other in others:
        assert [step for step, name, _ in other.numbers if name == "loss"] == [1, 2, 3, 4]
        assert other.closed == 1


def left_out(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "goes on without" in line]


@pytest.mark.parametrize("hanging", ["open", "log", "close"])
def test_a_service_that_does_not_answer_costs_one_line(
    tiny, hanging: str, install, hang, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run ends as it should, whether or not there is room for all of its records."""
    monkeypatch.setattr(trackers, "FINISH_TIMEOUT", 0.3)
    monkeypatch.setattr(trackers, "TIMEOUT", 0.2)
    for room, seconds in ((1000, 0.3), (3, 0.2)) if hanging != "close" else ((1000, 0.3),):
        monkeypatch.setattr(trackers, "MAX_WAITING", room)
        fake = install("wandb_log", **{hanging: hang})
        other = install("tensorboard_log")
        assert train(tiny(**SETTINGS, wandb_log=True, tensorboard_log=True, overwrite=True)).step == 4
        assert left_out(capfd) == [f"wandb_log failed (no answer for {seconds} seconds); the run goes on without it"]
        assert fake.torn_down == 1  # else wandb's own atexit hook would wait for its process
        assert [step for step, name, _ in other.numbers if name == "loss"] == [1, 2, 3, 4]


def test_ctrl_c_ends_the_wait_for_a_service_and_not_the_run(
    tiny, install, hang, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        time.sleep(0.2)  # a signal at the very moment that a wait begins is only seen after it
        os.kill(os.getpid(), signal.SIGINT)
        hang()

    fake = install("wandb_log", close=interrupted)
    other = install("trackio_log")
    assert train(tiny(**SETTINGS, wandb_log=True, trackio_log=True)).step == 4
    assert left_out(capfd) == ["wandb_log failed (KeyboardInterrupt); the run goes on without it"]
    assert (fake.torn_down, other.closed) == (1, 1)


def test_ctrl_c_at_the_question_for_a_login_ends_the_run(tiny, tmp_path: Path, install) -> None:
    install("wandb_log", login=raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**SETTINGS, wandb_log=True))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_without_a_login_the_run_goes_on(tiny, install, capfd: pytest.CaptureFixture[str]) -> None:
    install("wandb_log", login=raising(SystemExit("No API key configured")))
    assert train(tiny(**SETTINGS, wandb_log=True)).step == 4
    assert left_out(capfd) == ["wandb_log failed (No API key configured); the run goes on without it"]


@pytest.mark.parametrize("tracker", [WandbTracker, TrackioTracker])
def test_a_service_gets_a_new_run_where_training_goes_back(tracker: type, install) -> None:
    """wandb ignores a step below the last one, and trackio keeps both."""
    fake = install("wandb_log" if tracker is WandbTracker else "trackio_log")
    told = tracker("p", "n", {})
    told.log("start", 0, {})
    for step in (1, 2, 3):
        told.log("train", step, {"loss": float(step)})
    told.log("resume", 1, {"tokens": 64})
    told.log("train", 2, {"loss": 2.5})
    told.close()
    assert fake.numbers == [(1, "loss", 1.0), (2, "loss", 2.0), (3, "loss", 3.0), (2, "loss", 2.5)]
    assert (fake.opened, fake.closed) == (2, 2)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_missing_package_is_named(tiny, tmp_path: Path, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SWITCHES[switch]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{switch} needs the {module.rsplit('.')[-1]} package"):
        train(tiny(**{switch: True}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 / 0", "division by zero"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("from json import nothing", "cannot import name 'nothing' from 'json'"),
    ],
)
def test_a_broken_package_is_named(
    tiny, tmp_path: Path, code: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(UserError, match=rf"trackio_log: the trackio package is broken \({told}"):
        train(tiny(trackio_log=True))


def test_texts_are_shown_as_they_are() -> None:
    assert indented("# no\n\n* heading") == "    # no\n    \n    * heading\n"
