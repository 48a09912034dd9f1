"""What a load test is to do: where to, what, how often, for how long.

Rules: knows neither clocks nor sockets; a plan is checked when it is made, and travels to other processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..posting.targets import Target, headers_of, target_of
from .payloads import Payload

OPEN_MOST = 1000  # connections of an open loop, where the plan names no bound


@dataclass(frozen=True)
class Plan:
    """A load test before it runs.

    url: where to POST, http:// or https://, or unix:/path of a socket, and unix:/path:/where for another path than /
    there. payloads: what to send, in turn, over and over. rate: requests per second,
    sent on a schedule whether earlier ones were answered or not (open loop); None is a closed loop, in which each
    connection sends when its last request was answered. connections: of a closed loop how many (64 by default), of an
    open one how many at most (1000 by default); what finds none free waits in line, and its time counts. arrivals:
    "constant", each 1/rate after the last, or "poisson", as independent users send. count, seconds: how much, one of
    both. warmup: seconds of the same beforehand that don't count, at most `count` requests. processes: how many send.
    timeout: seconds from when a request was to be sent until it is given up. seed: of poisson's arrivals. headers:
    sent with every request. keep: whether Run.answers has every answer, for which there has to be memory.

    A closed loop sends less the slower the service is, and so leaves out the requests that would have waited
    (coordinated omission): its latencies are those of `connections` patient users, not of a given rate.

    Raises ValueError for what can't be meant.
    """

    url: str
    payloads: Sequence[Payload]
    rate: float | None = None
    connections: int | None = None
    arrivals: Literal["constant", "poisson"] = "constant"
    count: int | None = None
    seconds: float | None = None
    warmup: float = 0.5
    processes: int = 1
    timeout: float = 30.0
    seed: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    where: tuple[bytes, bytes] = field(init=False, repr=False, compare=False)  # the request target, the header Host

    def __post_init__(self) -> None:
        _, (target, host, _) = split(self.url)
        object.__setattr__(self, "where", (target.target, host))
        if not self.payloads:
            raise ValueError("payloads: expected at least one")
        if (self.count is None) == (self.seconds is None):
            raise ValueError(f"expected count or seconds, got count={self.count!r}, seconds={self.seconds!r}")
        if self.arrivals not in ("constant", "poisson"):
            raise ValueError(f"arrivals: expected 'constant' or 'poisson', got {self.arrivals!r}")
        for name in ("rate", "count", "seconds", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        if not 0 <= self.warmup < float("inf"):
            raise ValueError(f"warmup: expected seconds from 0 on, got {self.warmup!r}")
        if self.processes < 1:
            raise ValueError(f"processes: expected 1 or more, got {self.processes!r}")
        if self.connections is not None and self.connections < self.processes:
            raise ValueError(
                f"connections: expected 1 or more for each of {self.processes} processes, got {self.connections!r}"
            )
        headers_of(self.headers)

    @property
    def most_connections(self) -> int:
        """Of all processes together."""
        return self.connections or (64 if self.rate is None else OPEN_MOST)


def split(url: str) -> tuple[str, Target]:
    """The path of a unix socket, "" where there is none, and the target of a URL. Raises ValueError as target_of()."""
    if not isinstance(url, str) or not url.startswith("unix:"):
        return "", target_of(url)
    path, _, where = url.removeprefix("unix:").partition(":")
    if not path or (where and not where.startswith("/")):
        raise ValueError(f"expected unix:/path of a socket, or unix:/path:/where, got {url!r}")
    return path, target_of(f"http://localhost{where}")
