"""Processes that cannot share the work of an update are refused before it begins."""

from types import SimpleNamespace

import pytest

from gpt2.distributed.gradients import check_processes
from gpt2.errors import UserError

POSSIBLE = {"micro_batches": 12, "deterministic": False, "parallel": "ddp", "zero_stage": 0, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (8, {}, "gradient_accumulation_steps=12, .* 8 of them; the nearest numbers that can: 8 or 16$"),
        (16, {}, "gradient_accumulation_steps=12, .* 16 of them; the nearest numbers that can: 16$"),
        (3, {"deterministic": True}, "deterministic=True needs 1, 2, 4, 8, … processes, and there are 3$"),
        (4, {"deterministic": True, "parallel": "fsdp"}, "deterministic=True needs gradients that are not sharded"),
        (4, {"zero_stage": 1, "parallel": "fsdp"}, "leave --zero_stage out"),
        (4, {"dtype": "float16", "parallel": "fsdp"}, "use --dtype=bfloat16 or float32"),
    ],
)
def test_what_processes_cannot_share_is_refused(size: int, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_processes(SimpleNamespace(size=size), **POSSIBLE | changes)


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (1, {"deterministic": True}),
        (4, {"deterministic": True, "zero_stage": 1}),
        (3, {"zero_stage": 1, "dtype": "float16"}),
        (6, {"parallel": "fsdp"}),
    ],
)
def test_what_processes_can_share_is_not(size: int, changes: dict) -> None:
    check_processes(SimpleNamespace(size=size), **POSSIBLE | changes)
