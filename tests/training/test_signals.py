"""A signal is confirmed at once, obeyed soon, and loses nothing."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import curve, final_weights, start_process, wait_for_step

from gpt2.distributed.world import ALONE
from gpt2.evaluation import choices
from gpt2.evaluation import loss as loss_module
from gpt2.formats.run_folder import saved_steps
from gpt2.generation import next_tokens
from gpt2.runlog.console import RunConsole
from gpt2.runlog.records import read_log
from gpt2.training import loop, signals
from gpt2.training.loop import train
from gpt2.training.recipes import dump_toml


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, number: int = signal.SIGTERM) -> list:
    """Have call number `call` of a function send a signal to this process; returns a list that grows by each call."""
    original, calls = getattr(owner, name), []

    def killing(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, killing)
    return calls


EVALUATION = {"eval_interval": 10, "eval_iters": 40, "batch_size": 1}


@pytest.mark.parametrize(
    ("owner", "name", "first", "settings"),
    [
        # the call to be killed in: of the evaluation of step 10, after the 2 × 40 batches of that of step 0
        (loss_module, "token_losses", 83, EVALUATION),
        (next_tokens, "choose", 203, {"eval_interval": 0, "sample_interval": 10, "sample_tokens": 200}),
    ],
)
def test_a_signal_in_the_middle_ends_it_after_a_batch(
    owner: Any, name: str, first: int, settings: dict, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(**settings, out_dir=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        calls = kill_at(patch, owner, name, first)
        assert train(tiny(**settings)).stopped
        assert len(calls) <= first + 1
    assert saved_steps(tmp_path / "run")[0] == 10
    assert [r for r in read_log(tmp_path / "run") if r["event"] in ("eval", "sample") and r["step"] == 10] == []
    assert train(tiny(**settings, init_from="resume")).step == 20
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_a_signal_during_hellaswag_ends_it_after_a_batch(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2.evaluation.choices import Task

    tasks = [Task([1, 2, 3], [[4, 5], [6, 7]], [2, 2], 0)] * 2000
    monkeypatch.setattr("gpt2.training.setup._hellaswag_tasks", lambda *arguments: tasks)
    calls = kill_at(monkeypatch, choices, "score_targets", 3)
    assert train(tiny(hellaswag_interval=5, eval_interval=0)).stopped
    assert len(calls) == 3
    assert not [r for r in read_log(tmp_path / "run") if "acc" in r]


def test_it_is_confirmed_while_the_main_thread_is_busy(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs no signal handler in a long call of native code, as one of PyTorch's may be."""
    happened: list[str] = []
    step = loop.train_step

    def long_step(run: Any) -> Any:
        if run.state.step == 3:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            while not happened:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # without Python's lock, for about half a second
                if happened:
                    happened.append("computed")
        return step(run)

    def record(console: RunConsole, line: str) -> None:
        if "SIGTERM" in line:
            happened.append(line)

    monkeypatch.setattr(loop, "train_step", long_step)
    monkeypatch.setattr(RunConsole, "note", record)
    assert train(tiny()).stopped
    assert happened[0].startswith("SIGTERM: stopping after the current step and saving")
    assert happened[1] == "computed"
    assert len(happened) == 2


def test_a_closed_terminal_stops_a_run_as_sigterm_does(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=100_000, out_dir=str(tmp_path / "r"), eval_interval=0)
    process = start_process(config)
    wait_for_step(config, 20, process)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGCONT)
    for _ in range(3):  # a terminal and its shell both send it
        process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 75
    last = read_log(tmp_path / "r")[-1]
    assert (last["event"], last["because"]) == ("end", "signal")
    assert saved_steps(tmp_path / "r") == [last["step"]]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_signals_of_slurm_before_a_time_limit_stop_a_run(number: int, tiny, tmp_path: Path, monkeypatch) -> None:
    kill_at(monkeypatch, loop, "train_step", 3, number)
    assert train(tiny()).stopped
    assert saved_steps(tmp_path / "run") == [3]


def test_nohup_is_respected(tiny, tmp_path: Path) -> None:
    config = tiny(max_iters=60, out_dir=str(tmp_path / "r"), eval_interval=0)
    (tmp_path / "recipe.toml").write_text(dump_toml(config.as_dict()))
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "gpt2", "train", str(tmp_path / "recipe.toml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_step(config, 1, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert saved_steps(tmp_path / "r") == [60]


def test_the_handlers_of_before_are_back_after_a_run(tiny) -> None:
    def mine(number: int, frame: Any) -> None: ...

    before: dict[int, Any] = {n: signal.signal(n, mine) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        threads = threading.active_count()
        train(tiny(max_iters=1))
        assert [signal.getsignal(n) for n in before] == [mine] * 3
        assert threading.active_count() == threads
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_evaluation_that_is_ended_leaves_the_model_training(tiny) -> None:
    run = loop.set_up(tiny(), lambda line: None)
    run.model.train()

    def end(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.estimate_losses(run, end)
    assert run.model.training


def test_no_float64_is_asked_of_the_device(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have none: the losses come to the CPU before they are added up."""
    import torch

    class OnDevice(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "")
            if name == "cpu":
                return args[0].as_subclass(torch.Tensor)
            if name == "double" or torch.float64 in (*args, *(kwargs or {}).values()):
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            return super().__torch_function__(function, types, args, kwargs or {})

    run = loop.set_up(tiny(), lambda line: None)
    expected = loop.estimate_losses(run)
    compute = loss_module.token_losses
    monkeypatch.setattr(loss_module, "token_losses", lambda *arguments: compute(*arguments).as_subclass(OnDevice))
    assert loop.estimate_losses(run) == expected
    assert loss_module.evaluating


class Two:
    """Two processes, seen from one of them; what the other one answers is given."""

    size = 2

    def __init__(self) -> None:
        self.questions = 0
        self.other: tuple[bool, float] = (False, 0.0)

    def gather(self, value: tuple[bool, float]) -> list[tuple[bool, float]]:
        self.questions += 1
        return [value, self.other]


@pytest.mark.parametrize(("seconds", "questions"), [(0.01, 2.3), (0.1, 2.5), (3.0, 1 / 3)])
def test_processes_ask_each_other_twice_a_second_and_not_after_every_step(
    seconds: float, questions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, world = [0.0], Two()
    monkeypatch.setattr(signals.time, "perf_counter", lambda: now[0])
    stop = signals.Stop(world, lambda: False)  # pyrefly: ignore[bad-argument-type]

    def steps(until: float) -> bool:
        while now[0] < until:
            now[0] += seconds
            if stop.asked_between_steps():
                return True
        return False

    assert not steps(30)
    assert world.questions / 30 == pytest.approx(questions, rel=0.2)
    asked = world.questions
    world.other = (True, 0.0)  # the other process got a signal
    assert steps(60)
    assert now[0] <= 30 + signals.ASK_SECONDS + 2 * seconds
    assert world.questions == asked + 1
    assert stop.asked_between_steps()
    assert world.questions == asked + 1  # they all know


def test_a_slower_process_sets_the_number_of_steps_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now, world = [0.0], Two()
    monkeypatch.setattr(signals.time, "perf_counter", lambda: now[0])
    stop = signals.Stop(world, lambda: False)  # pyrefly: ignore[bad-argument-type]
    world.other = (False, 0.25)
    for _ in range(21):
        now[0] += 0.01
        assert not stop.asked_between_steps()
    assert world.questions == 11


def test_a_single_process_stops_after_the_step_of_a_signal() -> None:
    stop = signals.Stop(ALONE, lambda: False)
    assert not stop.asked_between_steps()
    stop.signal = signal.SIGTERM
    assert stop.asked_between_steps()
