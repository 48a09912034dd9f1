"""How long batches take, as those that were served tell; pure, so no clock and no loop."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtex.batch.pace import Pace

MS = 1_000_000
SERVED = st.lists(st.tuples(st.integers(1, 512), st.integers(0, 10**12), st.booleans()), max_size=60)


def taught(batches, size=512):
    pace = Pace(size)
    for items, ns, is_full in batches:
        pace.served(items, ns, is_full)
    return pace


def steady(a, b, sizes, size=512, noise=0.0, seed=1):
    """Batches that take a + b * n ms."""
    rng = random.Random(seed)
    return taught([(n, round((a + b * n) * MS * (1 + noise * rng.uniform(-1, 1))), n == size) for n in sizes], size)


@given(SERVED, st.integers(1, 10**6), st.integers(0, 10**4), st.floats(0, 1e12), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_a_wait_is_never_negative_and_never_shorter_behind_more(batches, items, more, ahead, running):
    pace = taught(batches)
    less = pace.wait(items, ahead, running)
    assert 0 <= less <= pace.wait(items + more, ahead, running) * (1 + 1e-9)
    assert less >= pace.wait(items) and less >= ahead
    assert 0 <= pace.batch(items) <= pace.batch(items + more) * (1 + 1e-9)


@given(SERVED, st.integers(1, 512), st.integers(0, 2))
@settings(max_examples=200, deadline=None)
def test_who_has_no_full_batch_ahead_is_served_soon_whatever_runs(batches, items, running):
    pace = taught(batches)
    assert pace.wait(items, running * pace.batch(512), running) <= pace.soon * (1 + 1e-9)


def test_nothing_is_predicted_before_a_batch_was_served():
    assert Pace(4).wait(10**6) == 0


@pytest.mark.parametrize(("a", "b"), [(10, 0), (0, 1), (5, 0.2)])
def test_the_wait_is_that_of_the_batches_ahead(a, b):
    pace = steady(a, b, [512] * 20)
    full = (a + b * 512) * MS
    assert pace.wait(512 * 10) == pytest.approx(10 * full, rel=0.05)
    assert pace.wait(512 * 10, ahead=full / 2, running=1) == pytest.approx(10.5 * full, rel=0.05)


def test_batches_of_several_sizes_tell_what_an_item_takes_and_what_a_batch():
    pace = steady(5, 0.2, [1, 512, 40, 300, 7, 512, 100] * 3)
    for n in (1, 50, 512):
        assert pace.batch(n) == pytest.approx((5 + 0.2 * n) * MS, rel=0.2, abs=3 * MS)


def test_what_small_batches_do_not_tell_of_large_ones_is_taken_for_as_quick_as_can_be():
    pace = steady(10, 0, [1] * 20)
    assert pace.wait(512) == pytest.approx(10 * MS, rel=0.01), "and not 512 times as long"
    waits = []
    for seed in range(20):
        waits.append(steady(10, 0, [1, 1, 1, 1, 1, 1, 2] * 10, noise=0.2, seed=seed).batch(512))
    assert max(waits) < 20 * MS, "what looks like a trend is chance"
    pace = steady(0, 1, [512] * 20)
    assert pace.batch(1) == pytest.approx(MS, rel=0.01), "and not as long as 512"


def test_one_large_batch_after_small_ones_tells_what_items_take():
    pace = steady(0, 1, [1] * 50 + [512])
    assert pace.batch(512) == pytest.approx(512 * MS, rel=0.1)


@pytest.mark.parametrize(("before", "after"), [(10, 30), (30, 10), (1, 1000), (1000, 10)])
def test_a_change_of_speed_is_learnt(before, after):
    pace = steady(before, 0, [64] * 100, size=64)
    batches = 0
    while not 0.8 * after * MS < pace.batch(64) < 1.25 * after * MS:
        pace.served(64, after * MS, True)
        batches += 1
    assert batches <= 48
    for _ in range(60):
        pace.served(64, after * MS, True)
    assert pace.wait(64) == pytest.approx(after * MS, rel=0.1), "and the doubt is gone"


def test_a_stall_does_not_look_like_a_new_pace():
    pace = steady(10, 0, [64] * 100, size=64)
    pace.served(64, 100_000 * MS, True)
    assert pace.batch(64) <= 2 * 10 * MS
    for _ in range(24):
        pace.served(64, 10 * MS, True)
    assert pace.wait(64) < 20 * MS


def test_noise_makes_a_wait_longer_so_that_most_are_in_time():
    rng = random.Random(2)
    pace, late = Pace(64), 0
    for turn in range(2000):
        if turn > 100:
            promised = pace.wait(64 * 8)
            took = sum(round(10 * MS * rng.uniform(0.5, 1.5)) for _ in range(8))
            late += took > promised
            assert promised < 2 * 80 * MS
        pace.served(64, round(10 * MS * rng.uniform(0.5, 1.5)), True)
    assert late < 19


def test_batches_that_are_full_of_fewer_items_are_more_of_them():
    """As where their cost is what fills them."""
    pace = taught([(40, 20 * MS, True)] * 60)
    assert pace.wait(400) == pytest.approx(200 * MS, rel=0.1)


def test_the_last_batch_of_a_queue_is_filled_by_those_who_come_later():
    """Who was promised the time of a batch of one got a 504 from a batch of eight."""
    pace = steady(0, 1, [8] * 20, size=8)
    assert pace.wait(9) == pytest.approx(16 * MS, rel=0.01), "and not 9 ms"
    assert pace.wait(1, 10 * MS, running=2) == pytest.approx(18 * MS, rel=0.01)
    assert pace.wait(1, MS, running=1) == pytest.approx(2 * MS, rel=0.01), "nothing full is ahead of it"
    quiet = steady(0, 1, [1, 3] * 20, size=8)
    assert quiet.wait(9) == pytest.approx(10 * MS, rel=0.1), "and no more will come than come of late"
