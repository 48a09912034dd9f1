"""Sees to it that a request whose time is over is answered, whatever it waits for.

Rules: knows when requests began, not what they are; a clock that is given. One timer does for all, and none runs while
nothing waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .exchange import Exchange
from .seam import NEVER


class Deadlines:
    """seconds: from a request's beginning until it expires. waiting: gives those that have no answer, when asked.

    begun: when the request began for which the timer runs; NEVER while it does not.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], int],
        seconds: float,
        waiting: Callable[[], list[Exchange]],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._seconds = seconds
        self._waiting = waiting
        self._timer: asyncio.TimerHandle | None = None
        self.begun = NEVER

    def watch(self, begun: int) -> None:
        """A request that began then waits: sweep when it has had its time, unless a sweep is due sooner."""
        if begun >= self.begun:
            return
        if self._timer is not None:
            self._timer.cancel()
        self.begun = begun
        left = (begun - self._clock()) / 1e9 + self._seconds
        self._timer = self._loop.call_later(max(left, 0.0) + 0.001, self._sweep)

    def stop(self) -> None:
        """Nothing waits any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.begun = None, NEVER

    def _sweep(self) -> None:
        self._timer, self.begun = None, NEVER
        deadline = self._clock() - round(self._seconds * 1e9)
        waiting = self._waiting()
        for exchange in waiting:
            if exchange.begun <= deadline:
                exchange.expire()
        left = [exchange.begun for exchange in waiting if exchange.begun > deadline and not exchange.resolved]
        if left:
            self.watch(min(left))
