"""What a replica says of its load, for a policy: how long items waited, and how busy the models were.

Rules: reads the totals of this process, whatever services they are of. Each reading is of the time since the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from ..metrics.totals import Totals, totals

WAIT, BUSY, ITEMS = "virtex_queue_wait_seconds", "virtex_executor_busy_seconds_total", "virtex_queue_items"


class Gauges:
    """Read once in a while, by one caller. clock: nanoseconds."""

    def __init__(
        self,
        clock: Callable[[], int] = time.perf_counter_ns,
        read: Callable[[], dict[str, Totals]] = totals,
    ) -> None:
        self._clock = clock
        self._read = read
        self._at = self._moved_at = clock()  # when they were read last, and when items were cut last
        self._cut, self._waited, self._busy = self._sums(read().values())[:3]

    def take(self) -> dict[str, float]:
        """queue_wait: seconds, of the items that were cut, or since when none is that waits, whichever is more.

        busy: share of the time in which batches were out, of all models together: a batch counts when it is back.
        queue_items: that wait now; for a policy of the user's own.
        """
        now = self._clock()
        cut, waited, busy, items = self._sums(self._read().values())
        new = cut - self._cut
        wait = (waited - self._waited) / new if new else 0.0
        if new or not items:
            self._moved_at = now
        wait = max(wait, (now - self._moved_at) / 1e9)
        share = (busy - self._busy) / max((now - self._at) / 1e9, 1e-3)
        self._at, self._cut, self._waited, self._busy = now, cut, waited, busy
        return {"queue_wait": wait, "busy": share, "queue_items": items}

    @staticmethod
    def _sums(services: Iterable[Totals]) -> tuple[int, float, float, float]:
        cut, waited, busy, items = 0, 0.0, 0.0, 0.0
        for one in services:
            waits = one.histogram(WAIT)
            cut, waited = cut + sum(waits.counts), waited + waits.sum
            busy, items = busy + one.value(BUSY), items + one.value(ITEMS)
        return cut, waited, busy, items
