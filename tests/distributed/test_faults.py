"""A process that dies, stops or hangs: the others end, it is named, and nothing is lost."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
from faults import every, ranks, settings, start, wait_for_checkpoint, weights
from processes import environment, remaining
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import config_from_args

from gpt2.cli.launch import launch
from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml

RESTARTING = {
    "gpt2": ("gpt2", "train", "--nproc=2", "--max_restarts=1"),
    "torchrun": ("torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "-m", "gpt2", "train"),
}


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The final weights of the run that the others are to end with."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(settings(dataset, out))
    assert process.wait(200) == 0, process.stderr.read() if process.stderr else ""
    return weights(out)


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: settings(dataset, tmp_path / "run", **changes)


@every
def test_a_signal_to_one_process_ends_all_at_one_step(run, undisturbed: bytes, tmp_path: Path) -> None:
    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGTERM), (1, signal.SIGINT)):
        process = start(run(init_from="auto"))
        wait_for_checkpoint(tmp_path / "run", process)
        os.kill(ranks(tmp_path / "run")[rank], number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        assert "stopped at step" in err
        assert "Traceback" not in err
        assert not remaining(tmp_path / "run")
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
    assert not remaining(tmp_path / "run")
    assert [r["stopped"] for r in read_log(tmp_path / "run") if r["event"] == "end"] == [True]


@pytest.mark.parametrize(("signals", "status"), [(1, 75), (2, 128 + signal.SIGTERM)])
def test_the_launcher_waits_until_a_run_is_saved(signals: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's launcher would kill the processes after 30 seconds. A second signal ends them without saving."""
    started = []

    def stopped(arguments: Any) -> None:
        started.append(config_from_args(arguments)[0])
        try:
            raise SignalException("first", signal.SIGTERM)
        except SignalException:
            if signals == 2:
                raise SignalException("second", signal.SIGTERM) from None
            raise

    for name in ("PET_SIGNALS_TO_HANDLE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.distributed.run, "run", stopped)
    assert launch("2", ["train", "--nproc=2"]) == status
    assert started[0].shutdown_timeout >= 600
    assert {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"} <= set(started[0].signals_to_handle.split(","))


@pytest.mark.parametrize("rank", [pytest.param(0, marks=every), 1])
def test_a_process_that_dies_is_named_and_ends_the_others(rank: int, run, undisturbed: bytes, tmp_path: Path) -> None:
    process = start(run())
    wait_for_checkpoint(tmp_path / "run", process)
    victim = ranks(tmp_path / "run")[rank]
    os.kill(victim, signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 1
    assert f"gpt2: process {rank} (pid {victim}) was killed by SIGKILL, so the others were ended too" in err
    assert "gloo" not in err
    assert not remaining(tmp_path / "run")
    process = start(run(init_from="resume"))
    assert process.wait(200) == 0
    assert weights(tmp_path / "run") == undisturbed


def test_what_ends_all_processes_alike_is_reported_once(run) -> None:
    process = start(run(learning_rate=1e25, warmup_iters=0, grad_clip=0.0))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.count("10 steps in a row were skipped") == 1, err


def test_an_exception_in_a_process_without_a_log_is_printed(run, tmp_path: Path) -> None:
    """The main process writes the log, and can only say that it lost the other one."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nimport gpt2\nfrom gpt2.training.recipes import load_recipe\n"
        "def fail(event, step, values):\n    if os.environ['RANK'] == '1' and step >= 20: raise ValueError('what')\n"
        f"config = gpt2.TrainConfig(**load_recipe({str(tmp_path / 'recipe.toml')!r}))\n"
        "try:\n    gpt2.train(config, callback=fail)\n"
        "except gpt2.UserError as error:\n    raise SystemExit(error) from None\n"
    )
    (tmp_path / "recipe.toml").write_text(dump_toml(run().as_dict()))
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    told = "training failed after step 20 with ValueError: what (the traceback is above, of process 1)"
    assert told in err and re.search(r"in fail\n.*\n.*\nValueError: what\n", err), err
    end = read_log(tmp_path / "run")[-1]
    assert end["error"].startswith(
        "process 0 lost the connection to another process, or to the launcher, after step 20"
    )
    assert not remaining(tmp_path)


@every
@pytest.mark.parametrize("launcher", RESTARTING)
def test_with_restarts_the_run_goes_on_by_itself(launcher: str, run, undisturbed: bytes, tmp_path: Path) -> None:
    process = start(run(), *RESTARTING[launcher])
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(ranks(tmp_path / "run")[1], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert weights(tmp_path / "run") == undisturbed
    assert not remaining(tmp_path / "run")


@every
@pytest.mark.parametrize("keeps_the_store", [False, True])
def test_a_process_that_hangs_is_named_with_its_step(
    keeps_the_store: bool, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keeps_the_store:  # which the launcher does otherwise
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    hangs, waits = (0, 1) if keeps_the_store else (1, 0)
    process = start(run(dist_timeout=3))
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(ranks(tmp_path / "run")[hangs], signal.SIGSTOP)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert f"gpt2: process {waits} made no progress for 3 s (dist_timeout=3); " in err
    if keeps_the_store:
        assert "the main process or its torchrun, which knows about the others, does not answer" in err
    else:
        assert re.search(r"of the others furthest behind: process 1 at (step \d+|a checkpoint);", err), err
    assert "training/loop.py" in err  # where the other waits
    assert not remaining(tmp_path / "run")
