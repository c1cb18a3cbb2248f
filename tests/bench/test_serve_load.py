"""The requests that a load consists of, and when they come."""

import itertools
import random
import statistics
from pathlib import Path

import pytest

from gpt2.bench.serve import percentiles
from gpt2.bench.serve_load import Lengths, arrivals, lengths_in, ranges, words_in
from gpt2.errors import UserError


def test_percentiles_by_hand() -> None:
    values = list(range(1, 102))
    random.Random(0).shuffle(values)
    assert percentiles(values) == (51, 96, 100)
    assert percentiles([1.0, 3.0]) == pytest.approx((2.0, 2.9, 2.98))
    assert percentiles([]) is None


def test_arrivals_are_a_poisson_process() -> None:
    times = [0.0, *itertools.islice(arrivals(4.0, 0), 20_000)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 4, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 4, rel=0.03)
    counts = [0] * 4000
    for at in times[1:]:
        if at < 4000:
            counts[int(at)] += 1
    assert statistics.mean(counts) == pytest.approx(4, rel=0.03)
    assert statistics.variance(counts) == pytest.approx(4, rel=0.1)
    assert (
        times[1:]
        == list(itertools.islice(arrivals(4.0, 0), 20_000))
        != list(itertools.islice(arrivals(4.0, 1), 20_000))
    )


def test_files_of_lengths_and_words(tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"prompt_tokens": 5, "new_tokens": 7}\n\n{"prompt_tokens": 50, "new_tokens": 1, "time": 3}\n')
    lengths = lengths_in(file)
    rng = random.Random(0)
    assert {lengths.draw(rng) for _ in range(50)} == {(5, 7), (50, 1)}
    assert lengths.longest == 50
    for content in (
        "{}",
        '{"prompt_tokens": 5}',
        '{"prompt_tokens": 0, "new_tokens": 1}',
        "[1, 2]",
        "x",
        "[" * 10_000,
    ):
        file.write_text('{"prompt_tokens": 5, "new_tokens": 7}\n' + content)
        with pytest.raises(UserError, match=r"lengths.jsonl, line 2: this is no pair of lengths; write"):
            lengths_in(file)
    file.write_text("\n")
    for read in (words_in, lengths_in):
        with pytest.raises(UserError, match="has no"):
            read(file)
        with pytest.raises(UserError, match=r"cannot read .*missing"):
            read(tmp_path / "missing")
    file.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        words_in(file)
    with pytest.raises(UserError, match="prompt_tokens is 9 3; it must be the least number, then the largest"):
        ranges((9, 3), (1, 1))
    assert isinstance(lengths, Lengths)
