"""Processes that are started again beside what those before them have left in torchrun's store. Here, threads."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from gpt2.distributed.world import joined, unused_namespace
from gpt2.errors import UserError


@pytest.mark.parametrize("late", [0, 1, 2])
def test_they_meet_where_nothing_was_written_yet(late: int) -> None:
    """Whichever of them starts after the others have read what they could."""
    server = dist.TCPStore("localhost", 0, is_master=True)

    def process(rank: int, attempt: int) -> set[str]:
        if attempt and rank == late:
            time.sleep(0.2)
        store = unused_namespace(dist.TCPStore("localhost", server.port, is_master=False), rank, 3)
        assert not store.check([f"address of {rank}"])
        store.set(f"address of {rank}", f"{attempt}")
        return {store.get(f"address of {other}").decode() for other in range(3)}

    with ThreadPoolExecutor(3) as pool:
        for attempt in range(3):
            assert list(pool.map(process, range(3), [attempt] * 3)) == [{f"{attempt}"}] * 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "MASTER_PORT expected, but not set"),
        ({"MASTER_PORT": "taken"}, "EADDRINUSE, message: address already in use"),
        ({"MASTER_PORT": "0"}, "1/2 clients joined"),
        ({"RANK": "x"}, "invalid literal for int"),
    ],
)
def test_processes_that_do_not_meet_end_in_one_line(
    changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    for name, value in ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"} | changes).items():
        monkeypatch.setenv(name, value.replace("taken", str(server.port)))
    with (
        pytest.raises(UserError, match=rf"does not meet the others \(.*{reason}.*\), with RANK=., .* unset RANK"),
        joined(torch.device("cpu"), "gloo", 0.5),
    ):
        pass
