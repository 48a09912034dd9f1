"""More than one run: a sweep over rates or connections, and the search for the highest rate that holds a bound.

Rules: decides by what runs found; knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .plan import Plan
from .run import Progress, Run, run, was_late

NEAR = 0.2  # of the bound: a p99 that near to it is measured again
REPEATS = 3  # of such a run, of which the middle one counts
CLOSE = 1.05  # times the highest rate that held: where the lowest that did not is below, the search ends
STEP = 2.0  # from one rate to the next, until one holds and one does not
LEAST = 1.0  # requests/s


def sweep(
    plan: Plan,
    rates: Sequence[float] | None = None,
    connections: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """A run at each rate, or, in a closed loop, with each number of connections.

    plan: the rest. rates, connections: one of both. progress: as of run(). Raises ValueError for both or none.
    """
    if (rates is None) == (connections is None):
        raise ValueError("sweep: expected rates or connections")
    if rates is not None:
        plans = [replace(plan, rate=rate) for rate in rates]
    else:
        plans = [replace(plan, rate=None, connections=many) for many in connections or ()]
    return [run(one, progress) for one in plans]


@dataclass
class Search:
    """What a search found.

    p99: the bound, in seconds. runs: every run, in order. best: of the highest rate that held, None where none did.
    limited_by: "service"; "client" where it could not send faster; "high" where the highest rate that was asked for
    held.
    """

    p99: float
    runs: list[Run] = field(default_factory=list)
    best: Run | None = None
    limited_by: str = "service"


def search(
    plan: Plan,
    p99: float,
    first: float = 100.0,
    high: float = 1e6,
    errors: float = 0.001,
    progress: Progress | None = None,
    runner: Callable[[Plan, Progress | None], Run] = run,
) -> Search:
    """Find the highest rate that holds a bound: it is doubled until it does not, and the gap halved until it is 5 %.

    plan: the rest; its rate is not used. p99: the bound on the response time that 99 % stay within, in seconds. first:
    the rate to begin with; where it does not hold, it is halved, to 1 request/s at least. high: the highest rate.
    errors: which share may fail. progress: as of run(). runner: what runs a plan.

    A run whose p99 is within 20 % of the bound is repeated twice, and the middle p99 counts. A run is long enough where
    it has a thousand requests, and lasts a hundred times the bound: a queue that grows by 1 % then shows in p99.

    Raises ValueError for a bound or rates that can't be meant.
    """
    if not (p99 > 0 and 0 < first <= high and math.isfinite(high)):
        raise ValueError(f"expected p99 above 0 and first <= high, got p99={p99!r}, first={first!r}, high={high!r}")
    found = Search(p99)

    def holds(rate: float) -> bool:
        at_rate = replace(plan, rate=rate)
        tried = [runner(at_rate, progress)]
        while len(tried) < REPEATS and abs(_p99(tried[0]) / p99 - 1) < NEAR:
            tried.append(runner(at_rate, progress))
        found.runs += tried
        middle = sorted(tried, key=_p99)[len(tried) // 2]
        if holds_at(middle, p99, errors):
            found.best = middle
            return True
        found.limited_by = "client" if was_late(middle) else "service"
        return False

    held, failed = _bracket(holds, first, high)
    if not failed:
        found.limited_by = "high"
    while held and failed / held > CLOSE:
        rate = math.sqrt(held * failed)
        if holds(rate):
            held = rate
        else:
            failed = rate
    return found


def _bracket(holds: Callable[[float], bool], first: float, high: float) -> tuple[float, float]:
    """The highest rate that held, and the lowest that did not; 0 where there was none."""
    rate, held, failed = first, 0.0, 0.0
    while not (held and failed):
        if holds(rate):
            held = rate
            if failed or rate >= high:
                break
            rate = min(rate * STEP, high)
        else:
            failed = rate
            if held or rate <= LEAST:
                break
            rate = max(rate / STEP, LEAST)
    return held, failed


def _p99(found: Run) -> float:
    return found.response.percentile(99) if found.answered else math.inf


def holds_at(found: Run, p99: float, errors: float) -> bool:
    """Whether a run has answers, and holds the bounds. p99: seconds. errors: the share that may fail."""
    return _p99(found) <= p99 and failed_share(found) <= errors


def failed_share(found: Run) -> float:
    """Which share of what came back, or was to, is an error."""
    failed = sum(found.errors.values())
    return failed / (found.answered + failed) if failed else 0.0
