"""A load test: its processes are started, watched and ended, and what they found is one Run.

Rules: the only file of the room that starts processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .plan import Plan
from .record import Histogram, Slice


@dataclass
class Run:
    """What a load test found.

    plan: what was asked. scheduled, sent: requests that were to be sent, and were. answered: right answers: status 2xx,
    and no error in a message. items: of these. seconds: from the first request's time to the last answer. offered:
    requests per second, as asked or, in a closed loop, as sent. rate: right answers per second. client_kept_rate:
    whether the client sent in time; why_not: if not, how far it was off. response, service: of the right answers, the
    time from when each was to be sent, and from when it was. lateness: from when a request was to be sent until the
    client came to it. errors: how many of each kind. statuses: answers of each status. slices: one per second.
    machine: where it ran. answers: with keep, one for each request, in the order of the schedule.
    """

    plan: Plan
    scheduled: int = 0
    sent: int = 0
    answered: int = 0
    items: int = 0
    seconds: float = 0.0
    offered: float = 0.0
    rate: float = 0.0
    client_kept_rate: bool = True
    why_not: str = ""
    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    slices: list[Slice] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)


def run(plan: Plan, progress: Callable[[Slice], object] | None = None) -> Run:
    """Run a load test and wait for its end. progress: called about once a second with what came in that second."""
    raise NotImplementedError
