"""What a batch of n items costs, a + b * n, fitted to measurements; and the settings that such a model should have.

Rules: numbers only; nothing is started or sent here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from .virtual import simulate

Floats = npt.NDArray[np.float64]

ARRIVALS = 3000  # in one simulation: the p99 is that of the worst 30
STEPS = 7  # halvings of the interval in which the highest rate is looked for: to within 1 %
WINDOWS = (0.0, 0.05, 0.2)  # max_time_on_queue to propose, as parts of the latency that is allowed
WORTH = 0.5  # of the highest capacity, at which a batch size is worth a simulation
GRAIN = 0.001  # seconds: an event loop's timers are no finer


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that a batch takes: base + per_item * n. request: what the loop spends on a request besides."""

    base: float
    per_item: float
    request: float = 0.0

    def of(self, size: float) -> float:
        """Of a batch of so many items."""
        return self.base + self.per_item * size

    def on(self, executor: str) -> Cost:
        """As a simulation counts it: inline, nothing else runs while the loop reads and writes requests."""
        return replace(self, per_item=self.per_item + self.request) if executor == "inline" else self

    def capacity(self, size: int) -> float:
        """Items in a second when every batch is full."""
        return size / self.of(size)


@dataclass(frozen=True, slots=True)
class Settings:
    """What http_server() is told of batches."""

    max_batch_size: int
    max_time_on_queue: float
    executor: str

    def __str__(self) -> str:
        return (
            f"max_batch_size={self.max_batch_size}, max_time_on_queue={self.max_time_on_queue:g}, "
            f'executor="{self.executor}"'
        )


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings, and the rate up to which a simulation says that they hold the latency; 0: at none."""

    settings: Settings
    rate: float


def fit(measured: Sequence[tuple[int, float]], request: float = 0.0) -> Cost:
    """The cost that is nearest to what batches took, each error in proportion to its time.

    measured: pairs of items and seconds, of two sizes at least. A base or a slope below 0 is none.
    Raises ValueError for fewer sizes.
    """
    sizes, seconds = np.array(measured, float).T if measured else (np.empty(0), np.empty(0))
    if len(set(sizes)) < 2:
        raise ValueError(f"expected batches of two sizes at least, got {sorted(set(sizes))}")
    terms = np.column_stack([np.ones_like(sizes), sizes]) / seconds[:, None]
    (base, per_item), *_ = np.linalg.lstsq(terms, np.ones_like(sizes), rcond=None)
    if per_item <= 0:
        base, per_item = 1 / np.mean(1 / seconds), 0.0
    elif base < 0:
        base, per_item = 0.0, np.sum(sizes / seconds) / np.sum((sizes / seconds) ** 2)
    return Cost(float(base), float(max(per_item, 1e-9)), request)


def sizes_to(most: int) -> list[int]:
    """The powers of two up to `most`, and `most` itself."""
    return [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]


def candidates(cost: Cost, allowed: float, most: int, executors: Iterable[str]) -> list[Settings]:
    """Every combination that can hold a latency, and may be worth it: a batch takes no longer than what is allowed.

    allowed: seconds. most: items of a batch.
    """
    windows = sorted({round(part * allowed / GRAIN) * GRAIN for part in WINDOWS})
    sizes = [size for size in sizes_to(most) if cost.of(size) <= allowed] or [1]
    sizes = [size for size in sizes if cost.capacity(size) >= WORTH * cost.capacity(sizes[-1])]
    return [Settings(size, round(window, 3), executor) for size, window, executor in product(sizes, windows, executors)]


def propose(cost: Cost, allowed: float, quantile: float, settings: Iterable[Settings]) -> list[Proposal]:
    """All of them by the rate that a simulation grants, the best first; of equals the smallest batch and wait.

    allowed: seconds, of which the quantile (99.0 is the p99) of latencies may be at most.
    """
    gaps = np.random.default_rng(0).exponential(1.0, ARRIVALS)  # the same arrivals for all, so that they can be ranked
    arrivals = np.cumsum(gaps) * 1e9
    found = [Proposal(each, highest(cost.on(each.executor), allowed, quantile, each, arrivals)) for each in settings]
    return sorted(
        found, key=lambda one: (-round(one.rate, -1), one.settings.max_batch_size, one.settings.max_time_on_queue)
    )


def highest(cost: Cost, allowed: float, quantile: float, settings: Settings, arrivals: Floats) -> float:
    """The highest rate of these arrivals at which the simulation holds the latency. arrivals: ns, 1 in a second.

    No more than what the loop can read and write, of which the simulation knows nothing.
    """

    def holds(rate: float) -> bool:
        latencies, _ = simulate(
            (arrivals / rate).astype(np.int64),
            lambda size: round(cost.of(size) * 1e9),
            settings.max_batch_size,
            settings.max_time_on_queue,
            settings.executor,
        )
        return float(np.percentile(latencies, quantile)) <= allowed * 1e9

    low, high = 0.0, cost.capacity(settings.max_batch_size)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return min(low, 1 / cost.request) if cost.request else low
