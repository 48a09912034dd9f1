"""More than one run: a sweep over rates or connections, and the search for the highest rate that holds a bound.

Rules: decides by what runs found; knows no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .plan import Plan
from .record import Slice
from .run import Run

Progress = Callable[[Slice], object]


@dataclass
class Search:
    """What a search found.

    p99: the bound, in seconds. runs: every run, in order. best: the one of the highest rate that held the bound, None
    where none did. limited_by: "service", or "client" where it could not send faster, or "high" where the highest rate
    asked for held.
    """

    p99: float
    runs: list[Run] = field(default_factory=list)
    best: Run | None = None
    limited_by: str = "service"


def sweep(
    plan: Plan,
    rates: Sequence[float] | None = None,
    connections: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """A run at each rate, or with each number of connections in a closed loop; the rest as the plan has it."""
    raise NotImplementedError


def search(
    plan: Plan,
    p99: float,
    low: float = 100.0,
    high: float = 1e6,
    errors: float = 0.001,
    progress: Progress | None = None,
) -> Search:
    """The highest rate at which p99 stays within the bound, and no more than a share of `errors` fails."""
    raise NotImplementedError
