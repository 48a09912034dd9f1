"""Runs of load tests that nobody made: figures of services that are well, overloaded, gone or hostile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from virtex.load.payloads import Payload
from virtex.load.plan import Plan
from virtex.load.record import Histogram, Slice
from virtex.load.run import Run

URL = "http://127.0.0.1:8081/"
PAYLOAD = Payload(b'{"data":[1]}', 1)
MACHINE = {"cpu": "a CPU", "cores": 2}


def histogram(median_ms: float, count: int, seed: int = 0, spread: float = 0.4) -> Histogram:
    rng = np.random.default_rng(seed)
    return Histogram((rng.lognormal(np.log(median_ms * 1e6), spread, count)).astype(np.int64))


def make_run(
    rate: float | None = 1000.0,
    median_ms: float = 3.0,
    seconds: int = 5,
    errors: dict[str, int] | None = None,
    served: float = 1.0,
    **plan: Any,
) -> Run:
    """A run of so many seconds, in which a share of the requests is answered."""
    sent = round((rate or 500) * seconds)
    slices, response = [], Histogram()
    for second in range(seconds):
        part = histogram(median_ms * (1 + 0.1 * second), round(sent * served / seconds), second)
        failed = Counter({kind: count // seconds for kind, count in (errors or {}).items()})
        slices.append(Slice(second + 1.0, part.count, failed, part))
        response.merge(part)
    return Run(
        Plan(**({"url": URL, "payloads": [PAYLOAD], "rate": rate, "seconds": float(seconds)} | plan)),
        scheduled=sent,
        sent=sent,
        answered=response.count,
        items=response.count,
        seconds=float(seconds),
        offered=sent / seconds,
        rate=response.count / seconds,
        response=response,
        service=histogram(median_ms * 0.9, response.count, 99),
        lateness=histogram(0.05, response.count, 98),
        errors=Counter(errors or {}),
        statuses=Counter({200: response.count}),
        slices=slices,
        machine=MACHINE,
    )


def make_sweep() -> list[Run]:
    """Of a service that takes 4000 requests a second."""
    medians = {500: 2.0, 1000: 2.1, 2000: 2.6, 3000: 3.5, 3500: 6.0, 4000: 45.0, 4500: 900.0}
    return [make_run(float(rate), ms, seconds=3, served=min(1.0, 4000 / rate)) for rate, ms in medians.items()]


def make_empty() -> Run:
    """Of a service that was not there long enough to answer."""
    return Run(Plan(URL, [PAYLOAD], rate=10.0, seconds=1.0))


def make_errors() -> Run:
    """Of a service that refuses every connection."""
    run = make_run(served=0.0, errors={"refused": 5000})
    run.statuses.clear()
    return run
