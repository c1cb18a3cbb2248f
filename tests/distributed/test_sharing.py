"""Sharing a model: who needs how much memory, and who holds the others up."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from faults import every, flags, ranks, settings, start, wait_for_checkpoint
from processes import environment, remaining

from gpt2.runlog.records import read_log

BENCHMARK = Path(__file__).parent.parent.parent / "benchmarks" / "distributed.py"
ALLOWANCE = 850 * 1024 * 1024
"""Bytes of a process. Of the model below weights and gradients take 400 MB, and AdamW's state would another 400."""
LARGE = {"n_layer": 4, "n_embd": 1024, "n_head": 8, "batch_size": 1, "max_iters": 3, "checkpoint_interval": 0}


def train_within_the_allowance(dataset: Path, out: Path, *launcher: str, **changes: object) -> tuple[int, str]:
    config = settings(dataset, out, **{**LARGE, "deterministic": False, "eval_iters": 1, **changes})
    thrifty = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2", "train", *launcher, *flags(config)],
        env=environment(out) | thrifty,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (ALLOWANCE, ALLOWANCE)),
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


@every
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory so")
def test_a_model_too_large_for_one_process_is_trained_by_four(dataset: Path, tmp_path: Path) -> None:
    status, err = train_within_the_allowance(dataset, tmp_path / "alone")
    assert status == 2, err
    assert err.splitlines()[-1].startswith("gpt2: the run does not fit into memory; lower --batch_size")
    for name, sharing in {"zero": {"zero_stage": 1}, "fsdp": {"parallel": "fsdp"}}.items():
        status, err = train_within_the_allowance(dataset, tmp_path / name, "--nproc=4", **sharing)
        assert status == 0, err
        assert [r["step"] for r in read_log(tmp_path / name) if r["event"] == "train"] == [1, 2, 3]


@every
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the benchmark reads /proc")
def test_each_process_keeps_as_much_as_the_arithmetic_says(dataset: Path, tmp_path: Path) -> None:
    shape = ["--n_layer=3", "--n_embd=48", "--n_head=3", "--block_size=16", "--rounds=1", "--updates=1"]
    ways = ["ddp", "ddp, zero_stage=1", "fsdp"]
    for processes in ("2", "3"):  # three share rows and parameters unevenly
        command = [sys.executable, str(BENCHMARK), str(dataset), *shape, "--processes", processes, "--only", *ways]
        subprocess.run([*command, "--json", tmp_path / "figures.json"], check=True, env=environment(tmp_path))
        results = json.loads((tmp_path / "figures.json").read_text())["results"]
        assert list(results) == ways
        for name, figures in results.items():
            for kind in ("parameters", "optimizer"):
                assert figures[kind] == figures["arithmetic"][kind], (processes, name, kind)


@every
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs cores to choose from")
def test_a_process_that_holds_the_others_up_is_told(dataset: Path, tmp_path: Path) -> None:
    """One process shares its core with eight others that only count."""
    larger = {"n_embd": 256, "n_layer": 4, "block_size": 64, "checkpoint_interval": 5, "max_iters": 60}
    process = start(settings(dataset, tmp_path / "run", **larger))
    wait_for_checkpoint(tmp_path / "run", process)
    for rank, pid in ranks(tmp_path / "run").items():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {rank})
    count = "import os\nos.sched_setaffinity(0, {1})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", count]) for _ in range(8)]
    try:
        _, err = process.communicate(timeout=300)
    finally:
        for other in busy:
            other.kill()
            other.wait()
    assert process.returncode == 0, err
    told = [r for r in read_log(tmp_path / "run") if r["event"] == "straggler"]
    assert told and {r["rank"] for r in told} == {1}
    assert re.search(r"step \d+ · process 1 on .* holds the others up: .* times the others' median", err)
    assert not remaining(tmp_path / "run")
