"""What a load test counts: times in histograms, and what happened in each second.

Rules: reads no clock and knows no sockets. Times come in as whole nanoseconds and go out as seconds.

A histogram is log-linear, as HdrHistogram is (Gil Tene, https://github.com/HdrHistogram/HdrHistogram): each octave has
1024 buckets, so a percentile is off by 0.05 % at most, and below 2048 ns by nothing. Only the buckets that hold
something are kept: two sorted arrays. So a second takes kilobytes, and no time is too long.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Nanoseconds = npt.NDArray[np.int64]

SUB_BITS = 10  # of a value, behind its leading one, that tell buckets apart
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


class Histogram:
    """How long things took: exact count, mean, deviation and extremes, and percentiles to within 0.05 %.

    values: whole nanoseconds, not negative. What it says of them is in seconds. Empty, it says nan.
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self.count = 0
        self._buckets = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._mean = 0.0  # of these two, nanoseconds
        self._squares = 0.0  # the sum of the squared distances from the mean
        self._least = self._most = 0
        self.add(values)

    def add(self, values: Iterable[int]) -> None:
        """Count these too, whole nanoseconds."""
        times = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.int64)
        if not len(times):
            return
        if times.min() < 0:
            raise ValueError(f"expected times from 0 on, got {times.min()} ns")
        self._join(
            *np.unique(_bucket_of(times), return_counts=True),
            float(times.mean()),
            float(times.var() * len(times)),
            int(times.min()),
            int(times.max()),
        )

    def merge(self, other: Histogram) -> Self:
        """Count what another one has counted too; gives this one."""
        if other.count:
            parts = (other._buckets, other._counts, other._mean, other._squares, other._least, other._most)
            self._join(*parts)
        return self

    def _join(self, buckets: Any, counts: Any, mean: float, squares: float, least: int, most: int) -> None:
        """Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979."""
        count = int(counts.sum())
        self._least = min(self._least, least) if self.count else least
        self._most = max(self._most, most)
        distance = mean - self._mean
        total = self.count + count
        self._squares += squares + distance * distance * self.count * count / total
        self._mean += distance * count / total
        self.count = total
        every = np.union1d(self._buckets, buckets)
        merged = np.zeros(len(every), np.int64)
        merged[np.searchsorted(every, self._buckets)] += self._counts
        merged[np.searchsorted(every, buckets)] += counts
        self._buckets, self._counts = every, merged

    @property
    def mean(self) -> float:
        return self._mean / 1e9 if self.count else math.nan

    @property
    def std(self) -> float:
        return math.sqrt(self._squares / self.count) / 1e9 if self.count else math.nan

    @property
    def min(self) -> float:
        return self._least / 1e9 if self.count else math.nan

    @property
    def max(self) -> float:
        return self._most / 1e9 if self.count else math.nan

    def percentile(self, q: float) -> float:
        """The time in seconds that q percent of all did not exceed; q from 0 to 100."""
        if not 0 <= q <= 100:
            raise ValueError(f"expected a percentile from 0 to 100, got {q!r}")
        if not self.count:
            return math.nan
        # A hair less: 99.9 % of 1000 is 999.0000000000001 in floats, and would be the 1000th.
        rank = max(1, math.ceil(q / 100 * self.count * (1 - 1e-12)))
        if rank == self.count:
            return self.max
        at = int(np.searchsorted(np.cumsum(self._counts), rank))
        middle = float(_middle_of(self._buckets[at : at + 1])[0])
        return min(max(middle, self._least), self._most) / 1e9

    def share_above(self, seconds: float) -> float:
        """Which share took longer, from 0 to 1, to within one bucket."""
        if not self.count:
            return math.nan
        first = int(np.searchsorted(_middle_of(self._buckets), seconds * 1e9, side="right"))
        return float(self._counts[first:].sum() / self.count)

    def counts(self) -> list[tuple[float, int]]:
        """Each bucket that holds something: seconds, the middle of it, and how many."""
        return [(at / 1e9, int(n)) for at, n in zip(_middle_of(self._buckets), self._counts, strict=True)]


def _bucket_of(times: Nanoseconds) -> Nanoseconds:
    """The index of each time's bucket: below 2 ** 11 the time itself, above its octave and its leading 11 bits."""
    octave = np.maximum(np.frexp(times.astype(np.float64))[1] - 1 - SUB_BITS, 0).astype(np.int64)
    buckets: Nanoseconds = (octave << SUB_BITS) + (times >> octave)
    return buckets


def _middle_of(buckets: Nanoseconds) -> npt.NDArray[np.float64]:
    octave = np.maximum((buckets >> SUB_BITS) - 1, 0)
    first = (buckets - (octave << SUB_BITS)) << octave
    middle: npt.NDArray[np.float64] = first + ((1 << octave) - 1) / 2
    return middle


@dataclass
class Slice:
    """What came back in one second.

    at: seconds from the start of the run to the second's end. answered: right answers. errors: how many of each kind.
    response: of the right answers, seconds from when they were to be sent.
    """

    at: float
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    response: Histogram = field(default_factory=Histogram)

    def merge(self, other: Slice) -> Self:
        """Add the same second of another process; gives this one."""
        self.at = max(self.at, other.at)
        self.answered += other.answered
        self.errors += other.errors
        self.response.merge(other.response)
        return self


class Answer(NamedTuple):
    """What became of one request; times in nanoseconds on perf_counter.

    number: its place in the schedule, from 0 on. scheduled, sent, done: when it was to be sent, was sent (0: never),
    and had its answer or its error. status: 0 where no answer came. error: its kind, "" for a right answer. body: the
    answer's.
    """

    number: int
    scheduled: int
    sent: int
    done: int
    status: int
    error: str
    body: bytes


class Tally:
    """What one process has counted. Times wait in lists, which are cheap to append to, until their second is over."""

    def __init__(self) -> None:
        self.scheduled = self.sent = self.answered = self.items = 0
        self.first = self.last = 0  # when the first request was to be sent, and the last answer came: nanoseconds
        self.last_sent = 0
        self.waited = 0  # requests that found every connection busy
        self.response, self.service, self.lateness = Histogram(), Histogram(), Histogram()
        self.errors: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.said: dict[str, bytes] = {}  # the first body of each kind of error that has one
        # As Answer has them, but plain tuples: the garbage collector lets go of these, and does not stop for a million.
        self.answers: list[tuple[int, int, int, int, int, str, bytes]] = []
        self.new_response: list[int] = []
        self.new_service: list[int] = []
        self.new_lateness: list[int] = []
        self.new_errors: Counter[str] = Counter()

    def cut(self, at: float) -> Slice:
        """End a second: what came in it, which is counted now."""
        of_second = Histogram(self.new_response)
        ended = Slice(at, of_second.count, self.new_errors, of_second)
        self.answered += of_second.count
        self.response.merge(of_second)
        self.service.add(self.new_service)
        self.lateness.add(self.new_lateness)
        self.errors += self.new_errors
        self.new_errors = Counter()
        self.new_response.clear()
        self.new_service.clear()
        self.new_lateness.clear()
        return ended

    def merge(self, other: Tally) -> Self:
        """Count what another process has counted too; gives this one."""
        self.first = min(filter(None, (self.first, other.first)), default=0)
        for name in ("last", "last_sent"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in ("scheduled", "sent", "answered", "items", "waited", "errors", "statuses", "answers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("response", "service", "lateness"):
            getattr(self, name).merge(getattr(other, name))
        self.said = other.said | self.said
        return self
