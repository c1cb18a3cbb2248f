from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.batches import (
    Batches,
    align,
    evaluation_starts,
    gather,
    permute,
    sample_starts,
    shuffled_starts,
)
from gpt2.data.shards import Tokens, open_shard
from gpt2.errors import UserError

CPU = torch.device("cpu")

ORDERS = ["random", "shuffled", "sequential"]
TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.mark.parametrize("order", ORDERS)
@given(length=st.integers(2, 400), block=st.integers(1, 50), step=st.integers(0, 50), count=st.integers(1, 40))
def test_every_window_lies_in_the_split(order: str, length: int, block: int, step: int, count: int) -> None:
    if length <= block:
        return
    starts = sample_starts([length], block, order, 7, step, count, 1)
    assert starts.shape == (count,)
    assert starts.min() >= 0
    assert starts.max() + block + 1 <= length


@pytest.mark.parametrize("order", ORDERS)
def test_batches_depend_on_seed_and_step_alone(order: str) -> None:
    first = sample_starts([1000], 16, order, 1, 5, 8, 1)
    assert np.array_equal(first, sample_starts([1000], 16, order, 1, 5, 8, 1))
    assert not np.array_equal(first, sample_starts([1000], 16, order, 1, 6, 8, 1))
    assert (order == "sequential") == np.array_equal(first, sample_starts([1000], 16, order, 2, 5, 8, 1))


def philox4x64(counter: list[int], key: int) -> list[int]:
    """Philox4x64-10 in plain integers, from the paper."""
    word = 2**64
    keys = [key, 0]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [b // word ^ counter[1] ^ keys[0], b % word, a // word ^ counter[3] ^ keys[1], a % word]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) % word, (keys[1] + 0xBB67AE8584CAA73B) % word]
    return counter


@pytest.mark.parametrize(("seed", "step"), [(1337, 3), (0, 0), (2**63, 10**9)])
def test_random_starts_are_philoxs_outputs(seed: int, step: int) -> None:
    """A change here would silently change every run that is resumed."""
    expected = [bits % (1000 - 16) for bits in philox4x64([1, 0, step, 0], seed)]
    assert sample_starts([1000], 16, "random", seed, step, 4, 1).tolist() == expected


def test_random_windows_reach_both_ends_evenly() -> None:
    starts = sample_starts([20], 16, "random", 0, 0, 40_000, 1)
    counts = np.bincount(starts, minlength=4)
    assert len(counts) == 4  # the last usable start is 20 - 16 - 1
    assert counts.min() > 9_700
    assert counts.max() < 10_300


def test_sequential_walks_block_by_block_and_wraps() -> None:
    starts = [sample_starts([65], 16, "sequential", 0, step, 3, 1).tolist() for step in range(2)]
    assert starts == [[0, 16, 32], [48, 0, 16]]


def llmc_positions(shards: list[int], rows: int, block: int, batches: int) -> list[int]:
    """Where the rows of llm.c's DistributedDataLoader begin in one process, counted through all shards."""
    shard = at = 0
    starts = []
    for _ in range(batches):
        starts += [sum(shards[:shard]) + at + row * block for row in range(rows)]
        at += rows * block
        if at + rows * block + 1 > shards[shard]:
            shard, at = (shard + 1) % len(shards), 0
    return starts


class Steps:
    """Tokens whose ids are their own offsets."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __getitem__(self, where: slice) -> np.ndarray:
        return np.arange(sum(self.lengths))[where]


@given(
    shards=st.lists(st.integers(49, 300), min_size=1, max_size=4),
    rows=st.integers(1, 3),
    micro_batches=st.integers(1, 4),
    block=st.integers(1, 16),
)
def test_sequential_walks_as_llm_c_does(shards: list[int], rows: int, micro_batches: int, block: int) -> None:
    count = rows * micro_batches
    walked = np.concatenate([sample_starts(shards, block, "sequential", 0, s, count, rows) for s in range(10)])
    assert walked.tolist() == llmc_positions(shards, rows, block, 10 * micro_batches)


def test_shards_that_hold_no_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"no shard has 4·16 tokens and one more"):
        sample_starts([64, 64], 16, "sequential", 0, 0, 4, 4)


def test_shuffled_shows_every_block_once_an_epoch_and_each_epoch_anew() -> None:
    blocks = (len(TOKENS) - 1) // 16 - 1
    walk = np.concatenate([sample_starts([1000], 16, "shuffled", 3, step, 1, 1) for step in range(2 * blocks)])
    epochs = walk.reshape(2, blocks)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == blocks
        assert len(set((epoch % 16).tolist())) == 1
    assert not np.array_equal(epochs[0], epochs[1])


def test_the_shuffled_order_stays_what_it_was() -> None:
    """Else a run that is resumed after an update of this package would see other batches."""
    starts = [shuffled_starts(1000, 10, 7, step, 6).tolist() for step in (0, 30)]
    assert starts == [[876, 116, 196, 576, 236, 486], [706, 446, 736, 666, 466, 756]]


@pytest.mark.parametrize("order", ORDERS)
def test_samples_of_a_step_do_not_depend_on_how_steps_are_cut(order: str) -> None:
    """Sample k of a run is the same sample in steps of 4 and of 8 where the order is one walk."""
    if order == "random":
        eight, four = (sample_starts([1000], 16, order, 0, 0, n, 1) for n in (8, 4))
        assert np.array_equal(eight[:4], four)
    else:
        eight = np.concatenate([sample_starts([1000], 16, order, 0, s, 8, 1) for s in range(20)])
        four = np.concatenate([sample_starts([1000], 16, order, 0, s, 4, 1) for s in range(40)])
        assert np.array_equal(eight, four)


@pytest.mark.parametrize("order", ORDERS)
@given(
    world_size=st.integers(1, 8),
    each=st.integers(1, 3),
    rows=st.integers(1, 4),
    block=st.integers(1, 9),
    shards=st.lists(st.integers(40, 200), min_size=1, max_size=3),
    seed=st.integers(0, 2**40),
    resumed=st.lists(st.integers(0, 6), max_size=3),
)
def test_all_processes_together_see_the_samples_of_one(
    order: str, world_size: int, each: int, rows: int, block: int, shards: list[int], seed: int, resumed: list[int]
) -> None:
    """In the same global order, with as many processes as one likes, stopped and taken up wherever one likes."""
    accumulation = world_size * each
    tokens = Steps(shards)
    batches = Batches(tokens, block, rows, accumulation, order, seed)
    starts = [sample_starts(shards, block, order, seed, step, accumulation * rows, rows) for step in range(7)]
    alone = [found.tolist() for found in starts]
    seen: dict[int, list[int]] = {}
    for begin in [0, *sorted(resumed)]:  # every process makes all updates from its last checkpoint on
        ranks = [
            [list(batches.micro_batches(step, rank, world_size, CPU)) for step in range(begin, 7)]
            for rank in range(world_size)
        ]
        for step in range(begin, 7):
            micro_batches = [micro_batch for rank in ranks for micro_batch in rank[step - begin]]
            assert [micro_batch.number for micro_batch in micro_batches] == list(range(accumulation))
            assert all(len(rank[step - begin]) == each for rank in ranks)
            seen[step] = [int(x[0]) for micro_batch in micro_batches for x in micro_batch.x]
            assert all(torch.equal(m.y, m.x + 1) for m in micro_batches)
    assert [seen[step] for step in range(7)] == alone
    if order != "sequential":  # how llm.c walks depends on the rows of a micro-batch
        again = [
            sample_starts(shards, block, order, seed, step, accumulation * rows, 1).tolist() for step in range(7)
        ]
        assert again == alone


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_permute_is_a_permutation(n: int, seed: int) -> None:
    keys = np.random.Philox(key=seed).random_raw(4)
    assert sorted(permute(np.arange(n), n, keys).tolist()) == list(range(n))


def test_permute_scatters() -> None:
    keys = np.random.Philox(key=1).random_raw(4)
    scattered = permute(np.arange(10_000), 10_000, keys)
    assert abs(np.corrcoef(np.arange(10_000), scattered)[0, 1]) < 0.05
    assert abs(np.corrcoef(scattered[:-1], scattered[1:])[0, 1]) < 0.05


@given(length=st.integers(2, 500), block=st.integers(1, 40), count=st.integers(0, 60))
def test_evaluation_blocks_are_spread_and_disjoint(length: int, block: int, count: int) -> None:
    if length <= block:
        return
    starts = evaluation_starts(TOKENS[:length], block, count)
    blocks = (length - 1) // block
    assert len(starts) == (blocks if count == 0 else min(count, blocks))
    assert (np.diff(starts) >= block).all()
    assert starts[-1] + block + 1 <= length
    gaps = np.diff(starts) // block
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_targets_are_one_token_ahead() -> None:
    x, y = gather(TOKENS, [0, 100], 4, torch.device("cpu"))
    assert x.tolist() == [[0, 1, 2, 3], [100, 101, 102, 103]]
    assert y.tolist() == [[1, 2, 3, 4], [101, 102, 103, 104]]
    assert x.dtype == y.dtype == torch.int64


def in_shards(folder: Path, *shards: list[int]) -> Tokens:
    for i, ids in enumerate(shards):
        np.array(ids, dtype="<u2").tofile(folder / f"{i}.bin")
    return Tokens([open_shard(folder / f"{i}.bin") for i in range(len(shards))])


@given(
    shards=st.lists(st.lists(st.sampled_from([1, 2, 9]), min_size=1, max_size=12), min_size=1, max_size=4),
    block=st.integers(1, 12),
)
def test_rows_are_aligned_to_the_next_document(shards: list[list[int]], block: int, tmp_path_factory) -> None:
    """Every window of the split, with end-of-text 9, alone and among the others."""
    ids = [token for shard in shards for token in shard]
    if len(ids) <= block:
        return
    tokens = in_shards(tmp_path_factory.mktemp("shards"), *shards)
    starts = np.arange(len(ids) - block)
    moved = align(tokens, starts, block, 9)
    assert starts.tolist() == list(range(len(ids) - block))  # the caller's are left as they are
    for start, to in enumerate(moved.tolist()):
        places = [p for p in range(start, start + block + 1) if p in starts and ids[p] == 9]
        assert to == (places[0] if places else start)
        assert len(tokens[to : to + block + 1]) == block + 1
        assert align(tokens, starts[start : start + 1], block, 9).tolist() == [to]
    assert np.array_equal(align(tokens, moved, block, 9), moved)


@pytest.mark.parametrize(
    ("start", "to"),
    [(0, 0), (1, 5), (5, 5), (6, 6), (7, 11), (11, 11), (12, 12), (14, 14)],
)
def test_a_window_moves_as_far_as_a_block_and_not_out_of_the_split(start: int, to: int, tmp_path: Path) -> None:
    """Blocks of 4 with end-of-text at 0, 5, 11 and 16; the last window that fits begins at 14."""
    ids = [9 if i in (0, 5, 11, 16) else 1 for i in range(19)]
    tokens = in_shards(tmp_path, ids[:9], ids[9:])
    assert align(tokens, np.array([start]), 4, 9).tolist() == [to]
