"""A process that dies, stops or hangs: the others end, it is named, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2.formats.layout import saved_steps
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig

STEPS = 400
every = pytest.mark.skipif(not os.environ.get("GPT2_TEST_FAULTS"), reason="takes minutes; make test-faults does it")
SETTINGS = {
    "max_iters": STEPS,
    "eval_interval": 0,
    "checkpoint_interval": 20,
    "gradient_accumulation_steps": 4,
    "deterministic": True,
}


def start(config: TrainConfig, *more: str) -> subprocess.Popen[str]:
    flags = [f"--{name}={value}" for name, value in config.as_dict().items() if value != ""]
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2", "train", "--nproc=2", *more, *flags],
        env={k: v for k, v in os.environ.items() if k != "RANK"} | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of the launcher's children by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == launcher.pid:
                environment = dict(e.split("=", 1) for e in (path / "environ").read_text().split("\0") if "=" in e)
                found[int(environment["RANK"])] = int(path.name)
        except (OSError, KeyError, IndexError, ValueError):
            continue
    return found


def alive(session: int) -> list[str]:
    """Processes of a session that do not end within ten seconds."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(path.parent.name)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def wait_for_checkpoint(out_dir: Path, process: subprocess.Popen[str]) -> None:
    """Until there is one more than now."""
    before = max(saved_steps(out_dir), default=0)
    deadline = time.monotonic() + 120
    while max(saved_steps(out_dir), default=0) == before:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(out_dir: Path) -> bytes:
    assert saved_steps(out_dir)[0] == STEPS
    return (out_dir / "checkpoints" / f"step_{STEPS:07d}" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The final weights of the run that the others are to end with."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(settings(dataset, out))
    assert process.wait(200) == 0, process.stderr.read() if process.stderr else ""
    return weights(out)


def settings(dataset: Path, out: Path, **changes: object) -> TrainConfig:
    tiny = {"batch_size": 4, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, "learning_rate": 1e-2}
    machine = {"device": "cpu", "dtype": "float32", "compile": False, "dataset": str(dataset), "out_dir": str(out)}
    return TrainConfig(**{**SETTINGS, **tiny, **machine, **changes})


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: settings(dataset, tmp_path / "run", **changes)


@every
def test_a_signal_to_one_process_ends_all_at_one_step(run, undisturbed: bytes, tmp_path: Path) -> None:
    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGTERM), (1, signal.SIGINT)):
        process = start(run(init_from="auto"))
        wait_for_checkpoint(tmp_path / "run", process)
        os.kill(ranks(process)[rank], number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert "stopped at step" in err
        assert "Traceback" not in err
        assert not alive(process.pid)
    process = start(run(init_from="auto"))
    assert process.wait(200) == 0
    assert weights(tmp_path / "run") == undisturbed
    ends = [r for r in read_log(tmp_path / "run") if r["event"] == "end"]
    assert [r["stopped"] for r in ends] == [True, True, True, False]


def test_a_signal_to_the_launcher_ends_all(run, tmp_path: Path) -> None:
    process = start(run())
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert not alive(process.pid)
    assert [r["stopped"] for r in read_log(tmp_path / "run") if r["event"] == "end"] == [True]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=every), 1])
def test_a_process_that_dies_is_named_and_ends_the_others(rank: int, run, undisturbed: bytes, tmp_path: Path) -> None:
    process = start(run())
    wait_for_checkpoint(tmp_path / "run", process)
    victim = ranks(process)[rank]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    assert f"gpt2: process {rank} (pid {victim}) was killed by SIGKILL, so the others were ended too" in err
    assert not alive(process.pid)
    process = start(run(init_from="resume"))
    assert process.wait(200) == 0
    assert weights(tmp_path / "run") == undisturbed


@every
def test_with_restarts_the_run_goes_on_by_itself(run, undisturbed: bytes, tmp_path: Path) -> None:
    process = start(run(), "--max_restarts=1")
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(ranks(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert weights(tmp_path / "run") == undisturbed


@every
def test_a_process_that_hangs_is_named_with_its_step(run, tmp_path: Path) -> None:
    process = start(run(dist_timeout=3))
    wait_for_checkpoint(tmp_path / "run", process)
    stopped = ranks(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "gpt2: process 0 came no further for 3 s (dist_timeout=3); " in err
    assert "of the others furthest behind: process 1 at step " in err
    assert "training/loop.py" in err  # where the other waits
    assert not alive(process.pid)
