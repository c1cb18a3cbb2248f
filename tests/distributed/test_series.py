"""Strikes at random moments, again and again: no step diverges, no checkpoint is lost, no process is left over."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from faults import STEPS, every, settings, start, weights
from processes import members, remaining

from gpt2.files import manifest_problem
from gpt2.formats.run_folder import saved_steps
from gpt2.training.loop import train

pytestmark = every
ALONE, TOGETHER = ("gpt2", "train"), ("gpt2", "train", "--nproc=2")
Strike = Callable[[subprocess.Popen[str], Path, random.Random], bool]
"""Does something to a run; returns whether it counts."""


def everything(out: Path, events: tuple[str, ...] = ("train",)) -> list[dict]:
    """All records ever written, those too that were written again."""
    with suppress(FileNotFoundError):
        lines = (out / "log.jsonl").read_text().split("\n")[:-1]
        return [record for record in map(json.loads, lines) if record["event"] in events]
    return []


class Struck:
    """A run that is struck and started again until it is through, and then begun anew."""

    def __init__(self, dataset: Path, folder: Path) -> None:
        self.dataset, self.out = dataset, folder / "run"
        undisturbed = folder / "undisturbed"
        train(settings(dataset, undisturbed))
        self.losses = {r["step"]: (r["loss"], r["grad_norm"]) for r in everything(undisturbed)}
        self.weights = weights(undisturbed)
        self.newest = 0
        self.ends = 0

    def series(self, launcher: tuple[str, ...], strike: Strike, count: int, statuses: set[int]) -> None:
        """Strike so many times, and then let the run come to its end."""
        rng, done = random.Random(0), 0
        while done < count:
            config = settings(self.dataset, self.out, init_from="auto", async_checkpoint=done % 2 == 1)
            process = start(config, *launcher)
            counts = strike(process, self.out, rng)
            _, err = process.communicate(timeout=120)
            assert process.returncode in statuses | {0}, err
            self.check()
            done += counts and process.returncode != 0
            if process.returncode == 0:
                self.end()
        process = start(settings(self.dataset, self.out, init_from="auto"), *launcher)
        assert process.wait(200) == 0, process.stderr.read() if process.stderr else ""
        self.check()
        self.end()

    def check(self) -> None:
        """What must hold after every strike."""
        assert not remaining(self.out)
        assert all((r["loss"], r["grad_norm"]) == self.losses[r["step"]] for r in everything(self.out))
        steps = saved_steps(self.out)
        for step in steps:
            assert manifest_problem(self.out / "checkpoints" / f"step_{step:07d}") is None
        assert max(steps, default=0) >= self.newest
        self.newest = max(steps, default=0)

    def end(self) -> None:
        """It is through."""
        assert weights(self.out) == self.weights
        shutil.rmtree(self.out)
        self.newest, self.ends = 0, self.ends + 1


@pytest.fixture
def struck(dataset: Path, tmp_path: Path) -> Iterator[Struck]:
    import torch

    yield Struck(dataset, tmp_path)
    torch.use_deterministic_algorithms(False)


def kill_all(out: Path) -> None:
    while found := members(out):
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def wait_until_it_trains(process: subprocess.Popen[str], out: Path) -> bool:
    """Until the run has begun or gone on; whether it did."""
    begun = len(everything(out, ("start", "resume")))
    while len(everything(out, ("start", "resume"))) == begun:
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    return True


def one_rank(out: Path, rng: random.Random) -> int:
    return rng.choice([process for process, variables in members(out).items() if "RANK" in variables])


def at_any_moment(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """Kill everything, also while it starts."""
    time.sleep(rng.uniform(0, 8))
    kill_all(out)
    return True


def inside_a_save(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """Kill everything while a checkpoint is being written, which then is left half written."""
    wait_until_it_trains(process, out)
    passed_over = rng.randrange(3)
    while process.poll() is None:
        if any((out / "checkpoints").glob(".step_*.tmp")):
            if not passed_over:
                kill_all(out)
                return any((out / "checkpoints").glob(".step_*.tmp"))
            passed_over -= 1
            time.sleep(0.1)
    return False


def to_one_process(number: signal.Signals) -> Strike:
    """Send a signal to one of the processes that train."""

    def strike(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
        if wait_until_it_trains(process, out):
            time.sleep(rng.uniform(0, 2))
            with suppress(ProcessLookupError, IndexError):
                os.kill(one_rank(out, rng), number)
                return True
        return False

    return strike


def test_80_kills_at_any_moment(struck: Struck) -> None:
    struck.series(ALONE, at_any_moment, 80, {-signal.SIGKILL})
    assert struck.ends > 1


def test_20_kills_inside_a_save(struck: Struck) -> None:
    struck.series(TOGETHER, inside_a_save, 20, {-signal.SIGKILL})


def test_50_signals_to_one_process_of_two(struck: Struck) -> None:
    struck.series(TOGETHER, to_one_process(signal.SIGTERM), 50, {75})


def test_20_kills_of_one_process_of_two(struck: Struck) -> None:
    struck.series(TOGETHER, to_one_process(signal.SIGKILL), 20, {1})


@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_of_2_megabytes(beside: bool, dataset: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    larger = {"n_embd": 64, "max_iters": STEPS, "async_checkpoint": beside}
    try:
        process = start(settings(dataset, disk / "run", **larger))
        _, err = process.communicate(timeout=200)
        assert process.returncode == 2, err
        line = err.splitlines()[-1]
        assert (
            f"gpt2: cannot save {disk / 'run' / 'checkpoints' / 'step_0000040'} (No space left on device): it "
            in line
        )
        assert "Traceback" not in err
        assert saved_steps(disk / "run") == [20]
        assert manifest_problem(disk / "run" / "checkpoints" / "step_0000020") is None
        assert not remaining(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        process = start(settings(dataset, disk / "run", **larger, init_from="resume"))
        assert process.wait(200) == 0
        whole = settings(dataset, tmp_path / "whole", **larger)
        assert start(whole, *ALONE).wait(200) == 0
        assert weights(disk / "run") == weights(tmp_path / "whole")
    finally:
        kill_all(disk / "run")
        subprocess.run(["umount", "-l", disk], check=True)
