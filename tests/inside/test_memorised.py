"""The longest n-grams against a search of all of them, in token files that are read in pieces."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.data.shards import Tokens, open_shard
from gpt2.inside import memorised
from gpt2.inside.memorised import Matches, longest_matches


def tokens_of(folder: Path, *parts: list[int]) -> Tokens:
    """Tokens in a shard for each part."""
    shards = []
    for number, part in enumerate(parts):
        np.array(part, dtype="<u2").tofile(folder / f"train_{number}.bin")
        shards.append(open_shard(folder / f"train_{number}.bin"))
    return Tokens(shards)


def search(text: list[int], tokens: list[int], shortest: int) -> tuple[list[int], list[int]]:
    """The longest n-gram ending at each position, and its first offset, by comparing everything."""
    lengths, offsets = [0] * len(text), [-1] * len(text)
    for end in range(len(text)):
        for n in range(shortest, end + 2):
            gram = text[end + 1 - n : end + 1]
            where = [o for o in range(len(tokens) - n + 1) if tokens[o : o + n] == gram]
            if where:
                lengths[end], offsets[end] = n, where[0]
    return lengths, offsets


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=18),
    st.lists(st.integers(0, 2), min_size=2, max_size=60),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_the_longest_n_grams_are_those_of_a_complete_search(
    tmp_path_factory: pytest.TempPathFactory, text: list[int], tokens: list[int], shortest: int, piece: int
) -> None:
    middle = len(tokens) // 2
    split = tokens_of(tmp_path_factory.mktemp("tokens"), tokens[:middle], tokens[middle:])
    with patch.object(memorised, "TABLE_BITS", 1):  # so that many hashes are taken for those of the text at first
        found = longest_matches(np.array(text), split, shortest, piece)
    lengths, offsets = search(text, tokens, shortest)
    assert found.lengths.tolist() == lengths
    assert found.offsets.tolist() == offsets


def test_a_passage_is_found_over_pieces_and_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, 5000).tolist()
    text = [*rng.integers(0, 50_000, 30).tolist(), *tokens[2400:2600], *tokens[10:15], *tokens[4000:4003]]
    done: list[tuple[int, int]] = []
    split = tokens_of(tmp_path, tokens[:2500], tokens[2500:])
    found = longest_matches(np.array(text), split, 4, 512, lambda *work: done.append(work))
    assert found.lengths.tolist() == [0] * 33 + list(range(4, 201)) + [0] * 3 + [4, 5, 0, 0, 0]
    assert set(found.offsets[33:230].tolist()) == {2400}
    assert found.passages(5) == [(30, 200, 2400), (230, 5, 10)]
    assert found.passages(1) == [(30, 200, 2400)]
    assert done[0] == (512, 5000) and done[-1] == (5000, 5000)


def test_passages_do_not_overlap() -> None:
    lengths, offsets = np.array([0, 0, 0, 4, 5, 4, 0, 0, 4]), np.array([-1, -1, -1, 7, 7, 90, -1, -1, 30])
    assert Matches(lengths, offsets).passages(9) == [(0, 5, 7), (5, 4, 30)]
