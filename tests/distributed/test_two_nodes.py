"""Two machines, as two network namespaces with addresses of their own. One dies, comes back, and the run goes on."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import every, settings, start, wait_for_checkpoint, weights
from processes import environment, remaining

from gpt2.runlog.records import read_log
from gpt2.training.config import TrainConfig
from gpt2.training.recipes import dump_toml

SCRIPT = Path(__file__).parent.parent.parent / "launch" / "torchrun_two_nodes.sh"


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Node:
    """A machine: its name and addresses."""

    namespace: str
    here: str
    head: str

    def start(self, config: TrainConfig) -> subprocess.Popen[str]:
        """The run's processes of this machine by the script for two machines, which becomes their torchrun."""
        recipe = Path(config.out_dir).parent / "recipe.toml"
        recipe.write_text(dump_toml(config.as_dict()))
        variables = {
            "HEAD": self.head,
            "HERE": self.here,
            "NPROC": "1",
            "RECIPE": str(recipe),
            "OUT": config.out_dir,
            "GLOO_SOCKET_IFNAME": "eth0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        with (recipe.parent / f"{self.here}.txt").open("a") as stderr:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "sh", str(SCRIPT)],
                env=environment(config.out_dir) | variables,
                stderr=stderr,
                text=True,
            )

    def die(self) -> None:
        """Without a word."""
        while processes := ip("netns", "pids", self.namespace).split():
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """The first and the second, joined by a cable. The second's address is sorted first, as it may be."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    addresses = ["10.77.0.9", "10.77.0.10"]
    nodes = [Node(f"gpt2-{os.getpid()}-{i}", address, addresses[0]) for i, address in enumerate(addresses)]
    try:
        try:
            for node in nodes:
                ip("netns", "add", node.namespace)
            first, second = (node.namespace for node in nodes)
            ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
            for node in nodes:
                ip("-n", node.namespace, "address", "add", f"{node.here}/24", "dev", "eth0")
                for link in ("lo", "eth0"):
                    ip("-n", node.namespace, "link", "set", link, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield nodes
    finally:
        for node in nodes:
            if Path("/run/netns", node.namespace).exists():
                node.die()
                ip("netns", "delete", node.namespace)


@every
@pytest.mark.parametrize("dies", ["first", "second"])
def test_a_machine_that_dies_comes_back_and_the_run_goes_on(
    dies: str, nodes: list[Node], dataset: Path, tmp_path: Path
) -> None:
    alone = settings(dataset, tmp_path / "alone")
    assert start(alone, "gpt2", "train").wait(200) == 0

    first, second = nodes
    config = settings(dataset, tmp_path / "run")
    running = {node: node.start(config) for node in nodes}
    wait_for_checkpoint(tmp_path / "run", running[first])
    if dies == "second":  # the first waits for it
        second.die()
        running[second].wait(20)
        running[second] = second.start(config)
    else:  # the second ends, as it has nobody to ask where the others are
        first.die()
        running[first].wait(20)
        assert running[second].wait(200) != 0
        running = {node: node.start(config) for node in nodes}
    for node, process in running.items():
        assert process.wait(200) == 0, (tmp_path / f"{node.here}.txt").read_text()
    marks = [r for r in read_log(tmp_path / "run") if r["event"] in ("start", "resume", "end")]
    if dies == "first":  # the main process is on the second, and lives to write an end
        assert marks.pop(1)["error"].startswith("process 0 lost the connection to another process")
    assert [r["event"] for r in marks] == ["start", "resume", "end"]
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")
    assert not remaining(config.out_dir)
