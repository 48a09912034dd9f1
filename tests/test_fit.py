"""What a batch costs, and the settings that a simulation in virtual time proposes for it."""

import numpy as np
import pytest

from virtex.load.fit import ARRIVALS, Cost, Settings, candidates, fit, highest, propose, sizes_to
from virtex.load.virtual import VirtualLoop, simulate

GPU = Cost(0.005, 0.0001)


def nanoseconds(size):
    return round(GPU.of(size) * 1e9)


def arrivals(rate, count=5000):
    return (np.cumsum(np.random.default_rng(1).exponential(1 / rate, count)) * 1e9).astype(np.int64)


# ---- the fit


def test_a_cost_that_is_a_line_is_found_exactly():
    found = fit([(size, GPU.of(size)) for size in (1, 2, 4, 64, 512)], request=2e-5)
    assert (found.base, found.per_item, found.request) == pytest.approx((0.005, 0.0001, 2e-5))


def test_a_cost_with_noise_is_found_within_the_noise():
    random = np.random.default_rng(0)
    found = fit([(size, GPU.of(size) * random.uniform(0.95, 1.05)) for size in (1, 2, 4, 8, 16, 32, 64, 128)])
    assert found.base == pytest.approx(0.005, rel=0.1) and found.per_item == pytest.approx(0.0001, rel=0.1)


def test_small_batches_count_as_much_as_large_ones():
    found = fit([(1, 0.001), (2, 0.002), (1000, 1.1)])
    assert found.of(1) == pytest.approx(0.001, rel=0.1)


def test_neither_base_nor_slope_is_ever_below_zero():
    no_base = fit([(1, 0.001), (10, 0.012), (100, 0.15)])
    assert no_base.base == 0 and 0.001 < no_base.per_item < 0.0016
    flat = fit([(1, 0.0051), (10, 0.005), (100, 0.0049)])
    assert flat.base == pytest.approx(0.005, rel=0.01) and 0 < flat.per_item < 1e-8


@pytest.mark.parametrize("measured", [[], [(8, 0.1)], [(8, 0.1), (8, 0.2)]], ids=["none", "one", "one size"])
def test_one_size_makes_no_line(measured):
    with pytest.raises(ValueError, match="expected batches of two sizes at least"):
        fit(measured)


def test_inline_the_loops_own_work_is_a_cost_of_the_item():
    cost = Cost(0.005, 0.0001, 0.00002)
    assert cost.on("inline").per_item == pytest.approx(0.00012) and cost.on("thread") == cost


# ---- the simulation


def test_a_lone_request_takes_what_its_batch_takes():
    for executor in ("inline", "thread"):
        latencies, size = simulate(np.array([0, 10**9]), nanoseconds, 64, 0.005, executor)
        assert (latencies.tolist(), size) == ([nanoseconds(1)] * 2, 1.0)


def test_every_request_is_answered_and_none_is_quicker_than_a_batch():
    for executor in ("inline", "thread"):
        latencies, size = simulate(arrivals(4000), nanoseconds, 64, 0.005, executor)
        assert len(latencies) == 5000 and latencies.min() >= nanoseconds(1) and 1 < size <= 64


def test_without_batches_requests_wait_in_line():
    times = np.zeros(4, np.int64)
    latencies, size = simulate(times, nanoseconds, 1, 0.0)
    assert (latencies // nanoseconds(1)).tolist() == [1, 2, 3, 4] and size == 1


def test_inline_what_comes_during_a_batch_is_in_the_next_one():
    times = np.array([0, 1_000_000, 2_000_000, 3_000_000])
    latencies, _ = simulate(times, nanoseconds, 64, 0.0, "inline")
    first, second = nanoseconds(1), nanoseconds(3)
    assert latencies.tolist() == [first, *(first + second - at for at in times[1:])]


def test_time_in_the_loop_never_goes_back():
    loop, seen = VirtualLoop(), []

    def hold(at):
        loop.now += 50
        seen.append(loop.now)
        loop.call_later(0, lambda: seen.append(loop.now))

    loop.run([10, 20, 30, 500], hold)
    assert seen == sorted(seen) and len(seen) == 8


# ---- the proposals


def test_sizes_are_powers_of_two_and_the_bound_itself():
    assert sizes_to(1) == [1] and sizes_to(8) == [1, 2, 4, 8] and sizes_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_candidates_keep_to_the_latency_and_leave_out_what_is_far_too_small():
    found = candidates(GPU, 0.05, 1024, ("inline", "thread"))
    assert {each.max_batch_size for each in found} == {64, 128, 256}  # 512 take 56 ms; 32 have half of 256's capacity
    assert {each.max_time_on_queue for each in found} == {0.0, 0.003, 0.01}
    assert {each.executor for each in found} == {"inline", "thread"} and len(found) == 18


def test_where_one_item_takes_too_long_batches_of_one_are_left():
    assert {each.max_batch_size for each in candidates(Cost(1.0, 0.1), 0.05, 64, ("inline",))} == {1}


def test_the_highest_rate_is_below_the_capacity_and_rises_with_the_latency():
    gaps = np.cumsum(np.random.default_rng(0).exponential(1.0, ARRIVALS)) * 1e9
    settings = Settings(64, 0.0, "thread")
    tight, loose = (highest(GPU, allowed, 99.0, settings, gaps) for allowed in (0.015, 0.05))
    assert 0 < tight < loose < GPU.capacity(64)
    assert highest(GPU, 0.001, 99.0, settings, gaps) == 0


def test_the_loop_bounds_what_is_proposed():
    (proposal,) = propose(Cost(1e-5, 1e-7, request=1e-4), 0.05, 99.0, [Settings(64, 0.0, "thread")])
    assert proposal.rate == pytest.approx(10_000)


def test_the_best_comes_first_and_of_equals_the_smallest():
    ranked = propose(
        GPU, 0.05, 99.0, [Settings(1, 0.0, "thread"), Settings(64, 0.002, "thread"), Settings(64, 0.0, "thread")]
    )
    assert [each.settings.max_batch_size for each in ranked] == [64, 64, 1]
    assert ranked[0].settings.max_time_on_queue <= ranked[1].settings.max_time_on_queue
    assert ranked[0].rate > 10 * ranked[2].rate


def test_settings_are_written_as_arguments():
    assert str(Settings(64, 0.002, "thread")) == 'max_batch_size=64, max_time_on_queue=0.002, executor="thread"'
