"""How many replicas there should be: the policy as a function of numbers, and as Ray calls it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from virtex.ray.policy import QueueWait, Reading, bounded, is_wait, readings_of, wanted

TARGET = 0.1


def decided(
    serving: int, wait: float, busy: float, *, intended: int | None = None, requests: float = 1, held: float = 0
) -> int:
    """What is wanted where every replica says the same."""
    readings = [Reading(wait, busy)] * serving
    return wanted(serving, serving if intended is None else intended, readings, requests, held, TARGET)


@pytest.mark.parametrize(
    ("serving", "wait", "expected"),
    [(1, 0.11, 2), (2, 0.15, 3), (4, 0.12, 5), (3, 0.2, 6), (3, 60.0, 6), (10, 0.3, 20)],
)
def test_a_wait_over_the_target_wants_more_in_proportion_and_at_most_twice_as_many(
    serving: int, wait: float, expected: int
) -> None:
    assert decided(serving, wait, 1.0) == expected


def test_who_has_not_begun_yet_is_waited_for_before_more_are_wanted() -> None:
    assert decided(2, 0.5, 1.0, intended=3) == 3


def test_a_busy_model_that_keeps_its_waits_short_is_left_alone() -> None:
    assert decided(3, 0.01, 1.0) == 3


@pytest.mark.parametrize("wait", [0.05, 0.07, 0.1])
def test_between_half_of_the_target_and_the_target_nothing_changes(wait: float) -> None:
    assert decided(4, wait, 0.0) == 4


@pytest.mark.parametrize(
    ("serving", "busy", "expected"), [(4, 0.1, 1), (4, 0.35, 2), (4, 0.36, 3), (3, 0.7, 3), (3, 0.46, 2), (1, 0.0, 1)]
)
def test_a_short_wait_lets_as_many_go_as_leave_the_rest_busy_at_seven_tenths(
    serving: int, busy: float, expected: int
) -> None:
    assert decided(serving, 0.001, busy) == expected


def test_what_it_lets_go_it_does_not_want_back_at_the_same_load() -> None:
    load = 1.4  # replicas' worth of work; the wait stays short where nobody is busy all the time
    replicas = decided(8, 0.001, load / 8)
    assert replicas == 2
    assert decided(replicas, 0.001, load / replicas) == replicas


def test_the_last_one_goes_when_nobody_asks_any_more() -> None:
    assert decided(1, 0.0, 0.0, requests=0) == 0
    assert decided(1, 0.0, 0.0, requests=0.01) == 1


def test_the_first_one_comes_with_the_first_request() -> None:
    assert wanted(0, 0, [], 1, 1, TARGET) == 1
    assert wanted(0, 0, [], 0, 0, TARGET) == 0


def test_those_that_start_ahead_of_the_first_request_are_left_to_it() -> None:
    assert wanted(0, 3, [], 0, 0, TARGET) == 3
    assert wanted(0, 3, [], 5, 5, TARGET) == 3


def test_where_nobody_has_said_anything_nothing_changes() -> None:
    assert wanted(3, 3, [], 100, 0, TARGET) == 3


def test_those_that_have_said_nothing_count_as_busy_as_the_others() -> None:
    assert wanted(4, 4, [Reading(0.001, 0.35)], 1, 0, TARGET) == 2


def test_requests_that_no_replica_may_take_are_a_wait_that_no_replica_sees() -> None:
    assert decided(2, 0.001, 1.0, held=5) == 4
    assert decided(2, 0.001, 1.0, held=2) == 2  # on their way


@pytest.mark.parametrize(("replicas", "expected"), [(0, 1), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_the_bounds_of_the_deployment_hold(replicas: int, expected: int) -> None:
    assert bounded(replicas, 1, 4) == expected


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1", None])
def test_what_is_no_time_to_wait_is_none(value: Any) -> None:
    assert not is_wait(value)


# ---- as Ray calls it


def context(**more: Any) -> Any:
    """Ray's context: two replicas, of which "a" spoke a second ago."""
    spoke = SimpleNamespace(timestamp=999.0)
    given = {
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "total_num_requests": 10.0,
        "total_queued_requests": 0.0,
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 3,
        "current_time": 1000.0,
        "config": SimpleNamespace(look_back_period_s=30.0, metrics_interval_s=10.0),
        "aggregated_metrics": {"queue_wait": {"a": 0.4}, "busy": {"a": 1.0}},
        "raw_metrics": {"queue_wait": {"a": [spoke]}},
    }
    return SimpleNamespace(**{**given, **more})


def test_ray_is_told_no_more_than_the_deployment_may_have() -> None:
    assert QueueWait()(context()) == (3, {})
    assert QueueWait(target_queue_wait=1.0)(context()) == (2, {})


@pytest.mark.parametrize("nothing", [None, {}], ids=["none", "empty"])
def test_ray_is_told_what_there_is_where_it_has_no_metrics(nothing: Any) -> None:
    assert QueueWait()(context(aggregated_metrics=nothing, raw_metrics=nothing)) == (2, {})


def test_a_replica_that_has_not_spoken_for_long_is_left_out() -> None:
    stale, fresh = SimpleNamespace(timestamp=959.0), SimpleNamespace(timestamp=961.0)
    said = {"queue_wait": {"a": 9.0, "b": 0.1, "c": 0.2}, "busy": {"a": 1.0, "b": 0.5}}
    points = {"queue_wait": {"a": [stale], "b": [stale, fresh], "c": [fresh]}}
    assert readings_of(context(aggregated_metrics=said, raw_metrics=points)) == [Reading(0.1, 0.5)]


@pytest.mark.parametrize("what", ["queue_wait", "busy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_replica_that_says_no_number_is_left_out(what: str, value: float) -> None:
    fresh = [SimpleNamespace(timestamp=999.0)]
    said = {"queue_wait": {"a": 0.001, "b": 0.1}, "busy": {"a": 1.0, "b": 0.5}}
    said[what]["a"] = value
    asked = context(aggregated_metrics=said, raw_metrics={"queue_wait": {"a": fresh, "b": fresh}})
    assert readings_of(asked) == [Reading(0.1, 0.5)] and QueueWait()(asked) == (2, {})


def test_the_policy_loads_nothing_of_virtex_but_itself() -> None:
    script = "import sys, virtex.ray.policy; print(sorted(name for name in sys.modules if name.startswith('virtex')))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "['virtex', 'virtex.ray', 'virtex.ray.policy']"
