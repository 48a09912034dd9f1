"""Sweeps, and the search for the highest rate that holds a bound, by a service whose times are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from kit.peer import answering, echo, message

from virtex.load.modes import Search, search, sweep
from virtex.load.payloads import payload_of
from virtex.load.plan import Plan
from virtex.load.record import Histogram
from virtex.load.run import Run

PLAN = Plan("http://127.0.0.1:1", [payload_of(message(1))], seconds=10.0, warmup=0)


def found(plan: Plan, p99: float, *, failed: float = 0.0, answered_in: float = 10.0, late: int = 0) -> Run:
    """What a run of 10 s would have found, all of whose answers took as long."""
    assert plan.rate
    count = int(plan.rate * 10)
    errors = int(count * failed)
    return Run(
        plan=plan,
        scheduled=count,
        answered=count - errors,
        seconds=answered_in + p99,
        offered=plan.rate,
        response=Histogram([int(p99 * 1e9)] * min(count - errors, 100)),
        lateness=Histogram([late] * 100),
        errors=Counter({"5xx": errors} if errors else {}),
    )


def searched(runner: Callable[[Plan], Run], **options: Any) -> tuple[Search, list[float]]:
    rates: list[float] = []

    def run(plan: Plan, _: object) -> Run:
        assert plan.rate is not None
        rates.append(plan.rate)
        return runner(plan)

    return search(PLAN, runner=run, **({"p99": 0.1} | options)), rates


def queue(capacity: float) -> Callable[[Plan], Run]:
    """1 ms at no load, without bound at its capacity."""
    return lambda plan: found(plan, 0.001 / max(1 - (plan.rate or 0) / capacity, 1e-6))


@pytest.mark.parametrize("capacity", [7.0, 90.0, 1000.0, 33_333.0])
def test_the_search_ends_at_the_highest_rate_that_holds(capacity: float) -> None:
    result, rates = searched(queue(capacity))
    limit = 0.99 * capacity  # where 1 ms has become 100
    assert result.best is not None
    assert limit / 1.051 < result.best.offered <= limit
    assert result.limited_by == "service"
    assert [run.offered for run in result.runs] == rates
    assert len(rates) < 30
    assert result.p99 == 0.1


def test_a_rate_doubles_until_it_does_not_hold_and_halves_from_there() -> None:
    _, rates = searched(queue(1000.0))
    assert rates[:6] == pytest.approx([100, 200, 400, 800, 1600, (800 * 1600) ** 0.5])
    _, rates = searched(queue(60.0))
    assert rates[:3] == pytest.approx([100, 50, (50 * 100) ** 0.5])


def test_a_run_near_the_bound_is_repeated_and_the_middle_one_counts() -> None:
    times = iter([0.01, 0.11, 0.09, 0.095, *[10.0] * 50])
    result, rates = searched(lambda plan: found(plan, next(times)))
    assert rates[:5] == [100, 200, 200, 200, 400]
    assert result.best is not None
    assert (result.best.offered, result.best.response.max) == (200, 0.095)


def test_where_nothing_holds_there_is_no_best() -> None:
    result, rates = searched(lambda plan: found(plan, 3.0))
    assert result.best is None
    assert rates == [100, 50, 25, 12.5, 6.25, 3.125, 1.5625, 1]


def test_where_the_highest_rate_holds_the_search_ends() -> None:
    result, rates = searched(lambda plan: found(plan, 0.001), high=500.0)
    assert rates == [100, 200, 400, 500]
    assert result.best is not None
    assert (result.best.offered, result.limited_by) == (500, "high")


FAILS: dict[str, dict[str, Any]] = {"errors": {"failed": 0.002}, "a queue that grows": {"answered_in": 12.0}}


@pytest.mark.parametrize("why", FAILS)
def test_a_rate_does_not_hold_for_other_reasons_either(why: str) -> None:
    def runner(plan: Plan) -> Run:
        return found(plan, 0.01, **FAILS[why]) if (plan.rate or 0) > 300 else found(plan, 0.01, failed=0.0005)

    result, _ = searched(runner)
    assert result.best is not None
    assert 280 < result.best.offered <= 300


def test_a_run_without_an_answer_does_not_hold() -> None:
    result, _ = searched(lambda plan: found(plan, 0.01, failed=1.0))
    assert result.best is None


def test_a_client_that_can_not_send_faster_is_what_limits() -> None:
    result, _ = searched(lambda plan: found(plan, 0.01) if (plan.rate or 0) < 300 else found(plan, 5.0, late=10**7))
    assert result.limited_by == "client"


@pytest.mark.parametrize("options", [{"p99": 0.0}, {"first": 0.0}, {"first": 9.0, "high": 3.0}, {"high": float("inf")}])
def test_bounds_that_can_not_be_meant_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected p99 above 0 and first <= high"):
        searched(queue(1.0), **options)


def test_a_sweep_is_a_run_at_each_rate_or_number_of_connections() -> None:
    with answering(echo) as peer:
        plan = Plan(peer.url(), PLAN.payloads, rate=1.0, count=20, warmup=0)
        by_rate = sweep(plan, rates=[200.0, 400.0])
        by_connections = sweep(plan, connections=[1, 3])
    assert [(run.plan.rate, run.answered) for run in by_rate] == [(200.0, 20), (400.0, 20)]
    assert [(run.plan.rate, run.plan.connections, run.answered) for run in by_connections] == [
        (None, 1, 20),
        (None, 3, 20),
    ]
    for wrong in ({}, {"rates": [1.0], "connections": [1]}):
        with pytest.raises(ValueError, match="expected rates or connections"):
            sweep(plan, **wrong)  # type: ignore[arg-type]
