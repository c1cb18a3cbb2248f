"""Processes that cannot share the work of an update are refused before it begins."""

from types import SimpleNamespace

import pytest

from gpt2.distributed.world import World
from gpt2.errors import UserError
from gpt2.training.budget import check_processes, fit_to_processes
from gpt2.training.config import TrainConfig

POSSIBLE = {"gradient_accumulation_steps": 12, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (8, {}, "gradient_accumulation_steps=12, .* 8 of them; the nearest numbers that can: 8 or 16$"),
        (16, {}, "gradient_accumulation_steps=12, .* 16 of them; the nearest numbers that can: 16$"),
        (3, {"deterministic": True}, "deterministic=True needs 1, 2, 4, 8, … processes, and there are 3$"),
        (4, {"deterministic": True, "parallel": "fsdp"}, "deterministic=True needs gradients that are not sharded"),
        (4, {"zero_stage": 1, "parallel": "fsdp"}, "leave --zero_stage out"),
        (4, {"dtype": "float16", "parallel": "fsdp"}, "use --dtype=bfloat16 or float32"),
        (4, {"deterministic": True, "parallel": "hsdp"}, "deterministic=True needs gradients that are not sharded"),
        (4, {"parallel": "hsdp"}, "cannot divide 4 processes into groups of 1 .* --hsdp_shards"),
        (4, {"parallel": "hsdp", "hsdp_shards": 3}, "cannot divide 4 processes into groups of 3"),
    ],
)
def test_what_processes_cannot_share_is_refused(size: int, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_processes(TrainConfig(**POSSIBLE | changes), World(size=size))


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (1, {"deterministic": True}),
        (4, {"deterministic": True, "zero_stage": 1}),
        (3, {"zero_stage": 1, "dtype": "float16"}),
        (6, {"parallel": "fsdp"}),
        (6, {"parallel": "hsdp", "hsdp_shards": 3}),
    ],
)
def test_what_processes_can_share_is_not(size: int, changes: dict) -> None:
    check_processes(TrainConfig(**POSSIBLE | changes), World(size=size))


@pytest.mark.parametrize(
    ("size", "settings", "split"),
    [
        (2, {"batch_size": 12}, (6, 2)),
        (8, {"batch_size": 12, "gradient_accumulation_steps": 12}, (6, 24)),
        (4, {"batch_size": 64, "block_size": 8, "total_batch_size": 64 * 8 * 3}, (16, 12)),
        (3, {"batch_size": 12, "gradient_accumulation_steps": 3}, (12, 3)),
        (1, {"batch_size": 12}, (12, 1)),
    ],
)
def test_a_micro_batch_is_split_into_the_fewest_that_the_processes_can_share(
    size: int, settings: dict, split: tuple[int, int]
) -> None:
    config, lines = TrainConfig(**settings).resolved(), []
    new = fit_to_processes(config, SimpleNamespace(size=size), lines.append)
    assert (new.batch_size, new.accumulation) == split
    assert new.tokens_per_step == config.tokens_per_step
    assert new.eval_iters * new.batch_size == config.eval_iters * config.batch_size
    assert len(lines) == (new != config)


@pytest.mark.parametrize("settings", [{"batch_size": 5}, {"deterministic": True}, {"data_order": "sequential"}])
def test_a_micro_batch_is_not_split_where_that_changes_more_than_rounding(settings: dict) -> None:
    with pytest.raises(UserError, match="cannot be shared by 2 of them"):
        fit_to_processes(TrainConfig(**settings), SimpleNamespace(size=2), print)
