"""Sees to it that a request whose time is over is answered, whatever it waits for.

Rules: knows until when requests may wait, not what they are; a clock that is given. One timer does for all, that of the
soonest deadline, and none runs while nothing waits.

Most requests have the service's time, so one that comes later is due later. They are not listed: only the soonest of
them is known, and when that one is due, all that wait are put in order once. A request with a time of its own is put in
order when it comes.

Cost: nothing for the former but a comparison, O(log n) for the latter, and one pass over what waits for each of the
service's times that goes by while requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from ..batch.batcher import Batcher
from .exchange import Exchange
from .seam import NEVER

FEW = 64  # entries that are not worth a look for those that are over


class Deadlines:
    """batcher: it looks at `due` before a cut and before answers. waiting: gives those that have no answer, when asked.

    unlisted: the soonest deadline of those that are not in order, in the clock's nanoseconds; NEVER where none is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        batcher: Batcher,
        waiting: Callable[[], list[Exchange]],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._batcher = batcher
        self._waiting = waiting
        self._timer: asyncio.TimerHandle | None = None
        self._listed: list[tuple[int, int, Exchange]] = []  # a heap; the second breaks ties
        self._count = 0
        self._most = FEW  # entries, until those that are over are thrown out
        self.unlisted = NEVER
        batcher.expire = self.expire

    def watch(self, exchange: Exchange) -> None:
        """A request waits, which has the service's time; needs no call unless it is due sooner than `unlisted`."""
        if exchange.deadline < self.unlisted:
            self.unlisted = exchange.deadline
            self._arm(exchange.deadline)

    def add(self, exchange: Exchange) -> None:
        """A request waits, which has a time of its own."""
        self._count += 1
        heappush(self._listed, (exchange.deadline, self._count, exchange))
        self._arm(exchange.deadline)
        if len(self._listed) > self._most:
            self._list([entry[2] for entry in self._listed])

    def stop(self) -> None:
        """Nothing waits any more."""
        self._listed.clear()
        self.unlisted = NEVER
        self._disarm()

    def expire(self, now: int) -> None:
        """Answer those whose time is over."""
        self._disarm()
        if self.unlisted <= now:
            self.unlisted = NEVER
            self._list(self._waiting())
        listed = self._listed
        while listed and (listed[0][2].resolved or listed[0][0] <= now):
            exchange = heappop(listed)[2]
            if not exchange.resolved:
                exchange.expire(now)
        self._arm(min(listed[0][0], self.unlisted) if listed else self.unlisted)

    def _list(self, exchanges: list[Exchange]) -> None:
        """Have these in order, as far as they still wait, and no others."""
        self._listed = [(one.deadline, i, one) for i, one in enumerate(exchanges) if not one.resolved]
        self._count = len(exchanges)
        heapify(self._listed)
        self._most = 2 * len(self._listed) + FEW

    def _arm(self, due: int) -> None:
        """Have the timer run until then, unless it ends sooner."""
        if due >= self._batcher.due:
            return
        self._disarm()
        self._batcher.due = due
        self._timer = self._loop.call_later(max((due - self._clock()) / 1e9, 0.0) + 0.001, self._on_timer)

    def _disarm(self) -> None:
        self._batcher.due = NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self.expire(self._clock())
