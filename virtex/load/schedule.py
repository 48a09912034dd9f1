"""When the requests of an open loop are to be sent.

Rules: knows no clock: times are whole nanoseconds from the start. All that a plan and a process's index say is said
again in another run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .plan import Plan

CHUNK = 4096  # times that are made at once: a fraction of a millisecond


def arrivals(plan: Plan, index: int, count: int | None, seconds: float | None) -> Iterator[list[int]]:
    """Nanoseconds from the start, ascending, of the requests that process `index` sends.

    Constant: request n of all processes together at n / rate; process k sends those with n % processes == k. Poisson:
    each process has a stream of its own, for the sum of independent ones is one again.
    """
    mine = None if count is None else len(range(index, count, plan.processes))
    end = np.inf if seconds is None else seconds * 1e9
    for times in _poisson(plan, index) if plan.arrivals == "poisson" else _constant(plan, index):
        within = times[: int(np.searchsorted(times, end))][:mine]
        if len(within):
            yield within.tolist()
        mine = None if mine is None else mine - len(within)
        if len(within) < len(times) or mine == 0:
            return


def _constant(plan: Plan, index: int) -> Iterator[np.ndarray]:
    assert plan.rate
    first = index
    while True:
        numbers = np.arange(first, first + CHUNK * plan.processes, plan.processes)
        yield np.rint(numbers * (1e9 / plan.rate)).astype(np.int64)
        first += CHUNK * plan.processes


def _poisson(plan: Plan, index: int) -> Iterator[np.ndarray]:
    assert plan.rate
    random = np.random.default_rng([plan.seed, index])
    last = 0.0
    while True:
        times = last + np.cumsum(random.exponential(1e9 * plan.processes / plan.rate, CHUNK))
        last = float(times[-1])
        yield np.rint(times).astype(np.int64)
