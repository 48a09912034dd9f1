"""The histogram of a load test against NumPy's own percentiles, and what a second and a process have counted."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtex.load.record import Histogram, Slice, Tally

QS = (0.0, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0)
TIMES = st.lists(st.integers(0, 2**62), min_size=1, max_size=60)


def lognormal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(16, 2, count).astype(np.int64)


def check(histogram: Histogram, times: np.ndarray) -> None:
    assert histogram.count == len(times)
    assert histogram.min == times.min() / 1e9
    assert histogram.max == times.max() / 1e9
    assert histogram.mean == pytest.approx(times.mean() / 1e9, rel=1e-9)
    assert histogram.std == pytest.approx(times.std() / 1e9, rel=1e-6, abs=1e-9)
    for q in QS:
        rank = math.ceil(Fraction(str(q)) / 100 * len(times))  # in floats 99.9 % of 1000 is more than 999
        truth = np.sort(times)[max(rank, 1) - 1] / 1e9
        assert histogram.percentile(q) == pytest.approx(truth, rel=0.0005), q


def test_percentiles_to_99_99_are_those_of_all_times_to_three_digits() -> None:
    times = lognormal(200_000)
    check(Histogram(times), times)


@given(TIMES)
def test_any_times_are_counted(times: list[int]) -> None:
    check(Histogram(times), np.array(times))


@given(st.lists(st.lists(st.integers(0, 10**12), max_size=20), min_size=1, max_size=5))
def test_merged_it_is_what_one_would_have_counted(parts: list[list[int]]) -> None:
    merged = Histogram()
    for part in parts:
        assert merged.merge(Histogram(part)) is merged
    alone = Histogram([at for part in parts for at in part])
    assert merged.counts() == alone.counts()
    assert merged.count == alone.count
    if merged.count:
        check(merged, np.array([at for part in parts for at in part]))


def test_below_2048_ns_nothing_is_rounded() -> None:
    assert Histogram(range(2048)).counts() == [(n / 1e9, 1) for n in range(2048)]
    assert len(Histogram(range(2048, 4096)).counts()) == 1024


def test_every_bucket_holds_its_own_middle_and_the_next_begins_where_it_ends() -> None:
    edges = [n for octave in range(11, 62) for n in (2**octave - 1, 2**octave, 2**octave + 2 ** (octave - 10))]
    for at in edges:
        ((middle, _),) = Histogram([at]).counts()
        assert abs(middle * 1e9 / at - 1) <= 0.0005
    assert len(Histogram(edges).counts()) == len(edges)


def test_empty_it_has_no_figures() -> None:
    empty = Histogram()
    assert empty.count == 0
    assert empty.counts() == []
    figures = (empty.mean, empty.std, empty.min, empty.max, empty.percentile(50), empty.share_above(1.0))
    assert all(map(math.isnan, figures))


def test_the_share_above_a_time() -> None:
    assert Histogram([1_000_000] * 3 + [3_000_000]).share_above(0.002) == 0.25
    assert Histogram([1_000_000]).share_above(0.002) == 0.0


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 on, got -1"):
        Histogram([3, -1])
    with pytest.raises(ValueError, match="from 0 to 100, got 101"):
        Histogram([3]).percentile(101)


def some_tally(first: int) -> Tally:
    tally = Tally()
    tally.scheduled = tally.sent = 3
    tally.items = 2
    tally.first, tally.last, tally.last_sent = first, first + 9, first + 5
    tally.statuses.update({200: 2, 500: 1})
    tally.new_response += [5, 7]
    tally.new_service += [4, 6]
    tally.new_lateness += [1, 1, 1]
    tally.new_errors["5xx"] += 1
    tally.answers.append((0, first, first, first + 9, 500, "5xx", b""))
    return tally


def test_a_second_takes_what_came_in_it_and_the_next_begins_with_nothing() -> None:
    tally = some_tally(100)
    second = tally.cut(1.0)
    assert (second.at, second.answered, second.errors, second.response.count) == (1.0, 2, {"5xx": 1}, 2)
    assert (tally.answered, tally.response.count, tally.service.count, tally.lateness.count) == (2, 2, 2, 3)
    nothing = tally.cut(2.0)
    assert (nothing.answered, nothing.errors, nothing.response.count) == (0, {}, 0)
    assert second.errors == tally.errors == {"5xx": 1}


def test_the_counts_of_processes_add_up() -> None:
    one, other = some_tally(100), some_tally(50)
    seconds: list[Slice] = [one.cut(1.0), other.cut(1.01)]
    merged = Tally().merge(one).merge(other)
    assert (merged.scheduled, merged.sent, merged.answered, merged.items) == (6, 6, 4, 4)
    assert (merged.first, merged.last, merged.last_sent) == (50, 109, 105)
    assert merged.errors == {"5xx": 2}
    assert merged.statuses == {200: 4, 500: 2}
    assert merged.response.count == 4
    assert len(merged.answers) == 2
    whole = copy.deepcopy(seconds[0]).merge(seconds[1])
    assert (whole.at, whole.answered, whole.errors, whole.response.count) == (1.01, 4, {"5xx": 2}, 4)
