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
        self._order: list[tuple[int, int]] = []  # a heap of deadlines; the second is a number in `_listed`
        self._listed: dict[int, Exchange] = {}
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
        """A request waits, which has a time of its own. One that is listed already may have a shorter one by now."""
        if not exchange.listed:
            self._count += 1
            exchange.listed = self._count
            self._listed[self._count] = exchange
        heappush(
            self._order, (exchange.deadline, exchange.listed)
        )  # whichever comes first finds it, and the other none
        self._arm(exchange.deadline)
        if len(self._order) > self._most:
            self._list(list(self._listed.values()))

    def forget(self, number: int) -> None:
        """A request has its answer, or nobody wants it any more. number: its `listed`.

        Else it would be kept, with an answer of any size that nobody charges any more, until its time is over.
        """
        self._listed.pop(number, None)

    def stop(self) -> None:
        """Nothing waits any more."""
        self._order.clear()
        self._listed.clear()
        self.unlisted = NEVER
        self._disarm()

    def expire(self, now: int) -> None:
        """Answer those whose time is over."""
        self._disarm()
        if self.unlisted <= now:
            self.unlisted = NEVER
            self._list(self._waiting())
        while self._order and (self._order[0][0] <= now or self._order[0][1] not in self._listed):
            exchange = self._listed.pop(heappop(self._order)[1], None)
            if exchange is not None and not exchange.resolved:
                exchange.expire(now)
        self._arm(min(self._order[0][0], self.unlisted) if self._order else self.unlisted)

    def _list(self, exchanges: list[Exchange]) -> None:
        """Have these in order, as far as they still wait, and no others."""
        self._listed = {}
        for exchange in dict.fromkeys(exchanges):  # what spans two batches comes twice
            if not exchange.resolved:
                self._count += 1
                exchange.listed = self._count
                self._listed[self._count] = exchange
        self._order = [(exchange.deadline, number) for number, exchange in self._listed.items()]
        heapify(self._order)
        self._most = 2 * len(self._order) + FEW

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
